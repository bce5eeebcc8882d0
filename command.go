package caddyktls

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/caddy-ktls/caddy-ktls/internal/doctor"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "ktls",
		Usage: "[--address <admin>] [--json]",
		Short: "Tells what this machine can do for kernel TLS, and how to get the rest",
		Long: `
Asks the kernel which TLS versions and ciphers it takes over from Caddy, sends a
file through it as a test, and looks at the settings, network cards and kernel
bugs that matter. If a Caddy with this module is running, its counters are shown
too: how many connections and responses took which path, and why. Ends with a
verdict and the remedy. What can't be found out is said to be so.

Nothing is changed, except that a kernel which loads its tls module when asked
by a privileged user does so.

--address is the running server's admin API; the default is that of the
environment variable CADDY_ADMIN, or else localhost:2019.

--json prints all that was found for programs. Its members are "ready",
"verdict", "notes" (of "code", "level" and "text"), "os", "build", "kernel" (as
in GET /ktls/ of the admin API), "release", "module", "sysctls", "counters",
"interfaces" and "server".

Colours are used in terminals only, and not if NO_COLOR is set.

The exit status is 0 if kernel TLS is ready, 1 if not, and 2 if the command line
is wrong.`,
		CobraFunc: doctorCommand,
	})
}

// Exit statuses of the command, besides 0.
const (
	exitNotReady = 1
	exitUsage    = 2
)

// doctorCommand makes cmd the command.
func doctorCommand(cmd *cobra.Command) {
	var address string
	var asJSON bool
	cmd.Flags().StringVar(&address, "address", caddy.DefaultAdminListen, "The address of the running server's admin API")
	cmd.Flags().BoolVar(&asJSON, "json", false, "Print everything as JSON")
	cmd.DisableFlagsInUseLine = true // they are in Usage
	cmd.SetFlagErrorFunc(usageError)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := cobra.NoArgs(cmd, args); err != nil {
			return usageError(cmd, err)
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		report := doctor.Examine(cmd.Context(), doctor.Options{Address: address, Build: thisBuild()})
		out := cmd.OutOrStdout()
		var err error
		if asJSON {
			enc := json.NewEncoder(out)
			enc.SetEscapeHTML(false)
			enc.SetIndent("", "  ")
			err = enc.Encode(report)
		} else {
			f, _ := out.(*os.File)
			err = report.Print(out, colourful(f))
		}
		if err != nil {
			return fmt.Errorf("writing the report: %w", err)
		}
		if !report.Ready {
			cmd.SilenceErrors = true // the report says it
			return errNotReady
		}
		return nil
	}
}

var errNotReady = errors.New("kernel TLS isn't ready on this machine")

// usageError says what is wrong with the command line, and ends the program with
// a status of its own.
func usageError(cmd *cobra.Command, err error) error {
	cmd.PrintErrf("Error: %v\nUsage: %s\n", err, cmd.UseLine())
	cmd.SilenceErrors = true
	return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
		return exitUsage, nil
	})(cmd, nil)
}

// colourful reports whether f is a terminal whose user takes colours
// (https://no-color.org).
func colourful(f *os.File) bool {
	return f != nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" &&
		runtime.GOOS != "windows" && term.IsTerminal(int(f.Fd()))
}

// thisBuild names the parts of this program, and tells whether they know each
// other.
func thisBuild() doctor.Build {
	simple, _ := caddy.Version()
	b := doctor.Build{Caddy: simple, Module: "(devel)", Go: runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		const path = "github.com/caddy-ktls/caddy-ktls"
		for _, m := range append(info.Deps, &info.Main) {
			if m.Path == path && m.Version != "" {
				b.Module = m.Version
			}
		}
	}
	if !knowsTLSListener() {
		b.Problem = "this module doesn't know the TLS listener of " + b.Go + ": build with the Go version of a release of this module"
	}
	return b
}
