// Command plot draws what integration/bench has measured: for each kernel and
// protocol what a GiB costs by the size of a body, a line for each server, as SVG.
//
//	go run . [-o DIR] [-kernel PREFIX] FILE...
//
// FILE is a results.jsonl. The files are DIR/benchmarks-PROTOCOL-KERNEL.svg (with
// -kernel, that should be one, DIR/benchmarks-PROTOCOL.svg), with "-seconds" before
// the dot where time was measured. It is a module of its own, so that nobody else
// needs what draws.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	dir := flag.String("o", ".", "the folder for the files")
	kernel := flag.String("kernel", "", "only of kernels whose version begins so")
	flag.Parse()
	if err := run(*dir, *kernel, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run(dir, kernel string, files []string) error {
	if len(files) == 0 {
		return fmt.Errorf("want results.jsonl of integration/bench/run")
	}
	var all []result
	for _, name := range files {
		results, err := read(name)
		if err != nil {
			return err
		}
		all = append(all, results...)
	}
	for _, c := range charts(all) {
		if !strings.HasPrefix(c.kernel, kernel) {
			continue
		}
		svg, err := c.svg()
		if err != nil {
			return err
		}
		name := filepath.Join(dir, c.file(kernel == ""))
		if err := os.WriteFile(name, svg, 0o644); err != nil {
			return err
		}
		fmt.Println(name)
	}
	return nil
}

// A result is what is needed of a line of results.jsonl.
type result struct {
	Kernel       string `json:"kernel"`
	Server       string `json:"server"`
	Protocol     string `json:"protocol"`
	Mode         string `json:"mode"`
	Body         int64  `json:"body"` // bytes
	Connections  int    `json:"connections"`
	Streams      int    `json:"streams"`
	Requests     int64  `json:"requests"`
	TLS          string `json:"tls"` // empty: 1.3
	Instructions int64  `json:"instructions"`
	Time         struct {
		CPU int64 `json:"cpu_ns"`
	} `json:"time"`
}

func read(name string) (all []result, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		var r result
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
		all = append(all, r)
	}
	return all, lines.Err()
}

// A chart is the lines of one kernel and protocol.
type chart struct {
	kernel, protocol string
	seconds          bool // else instructions
	lines            []line
}

// A line is a server's.
type line struct {
	server string
	points []point
}

// A point is what a GiB of bodies costs: 10⁹ instructions, or seconds of CPU.
type point struct {
	body int64 // bytes
	cost float64
}

// charts arranges the results: those of one connection that is kept alive, one
// request at a time, by TLS 1.3 or without TLS; the last of equal ones.
func charts(all []result) (charts []*chart) {
	for _, r := range all {
		if r.Connections != 1 || r.Streams != 1 || r.Mode != "decrypting" && r.Mode != "storing" || r.TLS == "1.2" {
			continue
		}
		cost, seconds := r.Instructions, false
		if r.Time.CPU > 0 {
			cost, seconds = r.Time.CPU, true
		}
		c := find(&charts, func(c *chart) bool {
			return c.kernel == r.Kernel && c.protocol == r.Protocol && c.seconds == seconds
		})
		if *c == nil {
			*c = &chart{kernel: r.Kernel, protocol: r.Protocol, seconds: seconds}
		}
		l := find(&(*c).lines, func(l line) bool { return l.server == r.Server })
		l.server = r.Server
		p := find(&l.points, func(p point) bool { return p.body == r.Body })
		p.body = r.Body
		p.cost = float64(cost) / float64(r.Requests) / float64(r.Body) * (1 << 30) / 1e9
	}
	for _, c := range charts {
		for _, l := range c.lines {
			slices.SortFunc(l.points, func(a, b point) int { return int(a.body - b.body) })
		}
		slices.SortStableFunc(c.lines, func(a, b line) int { return styleOf(a.server).order - styleOf(b.server).order })
	}
	return charts
}

// find returns what a list has, after adding it if it has not.
func find[T any](list *[]T, is func(T) bool) *T {
	i := slices.IndexFunc(*list, is)
	if i < 0 {
		i = len(*list)
		*list = append(*list, *new(T))
	}
	return &(*list)[i]
}

// file returns the name of the chart's file; with the kernel's version, if told so.
func (c *chart) file(version bool) string {
	name := "benchmarks-" + c.protocol
	if version {
		number, _, _ := strings.Cut(c.kernel, "+")
		name += "-" + number
	}
	if c.seconds {
		name += "-seconds"
	}
	return name + ".svg"
}
