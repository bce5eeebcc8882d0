//go:build linux

// Command bench measures what it costs a file server to serve HTTPS, as
// instructions or in seconds. It is what integration/bench/run runs:
//
//	bench measure [-here] [-quick] [-protocols LIST] [-tls LIST] [-bodies LIST] [-memory N] [-known FILE] NAME=BINARY...
//	                      prints a JSON object for each measurement that FILE
//	                      doesn't have
//	bench table FILE...   Markdown tables from these
//
// A guest with KTLS_LAB_ICOUNT=1 has one CPU, and a nanosecond of its time is an
// instruction. So the CPU time of the server's control group is a count of
// instructions, whatever else the machine does. With -here it is this machine, the
// CPU time is time, and throughput and latency are measured besides.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("want a command: measure or table")
	}
	switch args[0] {
	case "measure":
		var p plan
		flags := flag.NewFlagSet("measure", flag.ExitOnError)
		flags.BoolVar(&p.quick, "quick", false, "one connection and stream only, fewer requests")
		protocols := flags.String("protocols", "h1 h2", "h1 (HTTP/1.1), h2 (HTTP/2)")
		versions := flags.String("tls", "1.3 1.2", "versions of TLS")
		bodies := flags.String("bodies", "", "sizes in KiB, those of the files (all of them); 0: memory only")
		flags.BoolVar(&p.here, "here", false, "on this machine, in seconds")
		flags.IntVar(&p.memory, "memory", 1000, "connections of which the memory is measured; 0: none")
		known := flags.String("known", "", "a file of results that needn't be measured again")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		p.protocols, p.versions = strings.Fields(*protocols), strings.Fields(*versions)
		for _, kib := range strings.Fields(*bodies) {
			n, err := strconv.ParseInt(kib, 10, 64)
			if err != nil {
				return fmt.Errorf("not a size in KiB: %w", err)
			}
			if n != 0 && !slices.ContainsFunc(sizes, func(s size) bool { return s.body == n<<10 }) {
				return fmt.Errorf("no body of %d KiB", n)
			}
			p.bodies = append(p.bodies, n<<10)
		}
		if *known != "" {
			var err error
			if p.known, err = readResults([]string{*known}); err != nil {
				return err
			}
		}
		return measure(os.Stdout, flags.Args(), &p)
	case "table":
		results, err := readResults(args[1:])
		if err != nil {
			return err
		}
		return writeTables(os.Stdout, results)
	}
	return fmt.Errorf("no command %q: want measure or table", args[0])
}
