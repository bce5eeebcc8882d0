//go:build linux

// Command bench measures what it costs a file server to serve HTTPS, as
// instructions. It is what integration/bench/run runs:
//
//	bench measure [-quick] [-protocols LIST] NAME=BINARY...
//	                      in a guest: prints a JSON object for each measurement
//	bench table FILE...   Markdown tables from these
//
// A guest with KTLS_LAB_ICOUNT=1 has one CPU, and a nanosecond of its time is an
// instruction. So the CPU time of the server's control group is a count of
// instructions, whatever else the machine does.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
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
		flags := flag.NewFlagSet("measure", flag.ExitOnError)
		quick := flags.Bool("quick", false, "one connection and stream only, fewer requests")
		protocols := flags.String("protocols", "h1 h2", "h1 (HTTP/1.1), h2 (HTTP/2)")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return measure(os.Stdout, flags.Args(), strings.Fields(*protocols), *quick)
	case "table":
		results, err := readResults(args[1:])
		if err != nil {
			return err
		}
		return writeTables(os.Stdout, results)
	}
	return fmt.Errorf("no command %q: want measure or table", args[0])
}
