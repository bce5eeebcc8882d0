//go:build linux

// Command bench measures what it costs a file server to serve HTTPS, as
// instructions. It is what integration/bench/run runs:
//
//	bench measure [-quick] NAME=BINARY...   in a guest of the lab: one JSON object for each measurement
//	bench table FILE...                     Markdown tables from these
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
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: bench measure|table ARGUMENT...")
	}
	switch args[0] {
	case "measure":
		flags := flag.NewFlagSet("measure", flag.ExitOnError)
		quick := flags.Bool("quick", false, "one connection and stream only, fewer requests")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return measure(os.Stdout, flags.Args(), *quick)
	case "table":
		results, err := readResults(args[1:])
		if err != nil {
			return err
		}
		return writeTables(os.Stdout, results)
	}
	return fmt.Errorf("no command %q: want measure or table", args[0])
}
