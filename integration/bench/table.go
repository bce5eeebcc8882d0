//go:build linux

package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// stock is the server that all are compared with.
const stock = "caddy"

// A page is what a table is about.
type page struct {
	kernel, protocol string
	here, memory     bool
}

func (p page) title() string {
	switch {
	case p.memory:
		return "Memory, Linux " + p.kernel
	case p.here:
		return protocolNames[p.protocol] + " in seconds, Linux " + p.kernel
	}
	return protocolNames[p.protocol] + ", Linux " + p.kernel
}

// writeTables writes the results as Markdown: for each kernel and protocol a
// table, with a row for each scenario and a column for each server.
func writeTables(out io.Writer, results []result) error {
	var b strings.Builder
	pages := make(map[page][]result)
	var order []page
	for _, r := range results {
		p := page{r.Kernel, r.Protocol, r.here(), r.ofMemory()}
		if p.memory {
			p.protocol = ""
			p.here = false
		}
		if pages[p] == nil {
			order = append(order, p)
		}
		pages[p] = append(pages[p], r)
	}
	slices.SortStableFunc(order, func(a, b page) int {
		if a.memory != b.memory {
			return cmp.Compare(a.title(), b.title()) // HTTP before memory
		}
		return cmp.Compare(a.protocol, b.protocol)
	})
	for _, p := range order {
		fmt.Fprintf(&b, "### %s\n\n", p.title())
		switch {
		case p.memory:
			writeMemory(&b, pages[p])
		default:
			writeTable(&b, pages[p])
			writeErrors(&b, pages[p])
			if p.here {
				b.WriteByte('\n')
				writeTimes(&b, pages[p])
			}
		}
		b.WriteByte('\n')
	}
	writeVersions(&b, results)
	_, err := io.WriteString(out, b.String())
	return err
}

var protocolNames = map[string]string{"h1": "HTTP/1.1", "h2": "HTTP/2"}

// A grid is results by server and scenario, the last of equal ones.
type grid struct {
	servers []string
	rows    []scenario // Requests is 0
	cells   map[string]map[scenario]*result
}

// newGrid arranges results. What is served in the clear is compared with TLS 1.3.
func newGrid(results []result) *grid {
	g := &grid{cells: make(map[string]map[scenario]*result)}
	for i := range results {
		r := &results[i]
		row := r.scenario
		row.Requests = 0
		if row.TLS == "none" {
			row.TLS = "1.3"
		}
		if !slices.Contains(g.servers, r.Server) {
			g.servers = append(g.servers, r.Server)
			g.cells[r.Server] = make(map[scenario]*result)
		}
		if !slices.Contains(g.rows, row) {
			g.rows = append(g.rows, row)
		}
		g.cells[r.Server][row] = r
	}
	slices.SortStableFunc(g.rows, func(a, b scenario) int { return -cmp.Compare(a.TLS, b.TLS) })
	return g
}

// A column is one of those at the left, which tell the scenarios apart.
type column struct {
	head, rule string
	cell       func(scenario) string
}

// columns returns those that this grid needs.
func (g *grid) columns() []column {
	all := []column{
		{"body", "--:", func(s scenario) string { return sizeName(s.Body) }},
		{"connections", "--:", func(s scenario) string {
			if s.Mode == handshaking {
				return "new"
			}
			return fmt.Sprint(s.Connections)
		}},
	}
	if g.rows[0].Protocol == "h2" {
		all = append(all, column{"streams", "--:", func(s scenario) string { return fmt.Sprint(s.Streams) }})
	}
	if slices.ContainsFunc(g.rows, func(s scenario) bool { return s.TLS != "1.3" }) {
		all = append(all, column{"TLS", "---", func(s scenario) string { return s.TLS }})
	}
	return all
}

// writeTable writes what CPUs did.
func writeTable(b *strings.Builder, results []result) {
	g := newGrid(results)
	columns := append(g.columns(), column{"", "---", nil})
	for _, c := range columns {
		fmt.Fprintf(b, "| %s ", c.head)
	}
	b.WriteString("|")
	for _, server := range g.servers {
		fmt.Fprintf(b, " %s |", server)
		if compared(server, g.servers) {
			b.WriteString(" ratio |")
		}
	}
	b.WriteByte('\n')
	for _, c := range columns {
		fmt.Fprintf(b, "| %s ", c.rule)
	}
	b.WriteString("|")
	for _, server := range g.servers {
		b.WriteString(" --: |")
		if compared(server, g.servers) {
			b.WriteString(" --: |")
		}
	}
	b.WriteByte('\n')
	for _, row := range g.rows {
		for _, c := range columns[:len(columns)-1] {
			fmt.Fprintf(b, "| %s ", c.cell(row))
		}
		value, unit, scale := (*result).perRequest, "10³/request", 1e3
		if row.Body >= storingFrom {
			value, unit, scale = (*result).perGiB, "10⁹/GiB", 1e9
		}
		if results[0].here() {
			unit = map[float64]string{1e3: "µs/request", 1e9: "s/GiB"}[scale]
		}
		fmt.Fprintf(b, "| %s |", unit)
		base := g.cells[stock][row]
		for _, server := range g.servers {
			r := g.cells[server][row]
			if r == nil {
				b.WriteString(" |")
			} else {
				fmt.Fprintf(b, " %s |", threeDigits(value(r)/scale))
			}
			if !compared(server, g.servers) {
				continue
			}
			if r == nil || base == nil {
				b.WriteString(" |")
			} else {
				fmt.Fprintf(b, " %.2f |", r.perRequest()/base.perRequest())
			}
		}
		b.WriteByte('\n')
	}
}

// writeErrors says how exact a table is, as far as its measurements tell.
func writeErrors(b *strings.Builder, results []result) {
	g := newGrid(results)
	var most float64
	good, all := 0, 0
	for _, cells := range g.cells {
		for _, r := range cells {
			if r.Error == 0 {
				continue
			}
			all++
			if r.Error <= goodError {
				good++
			}
			most = max(most, r.Error)
		}
	}
	if all == 0 {
		return
	}
	fmt.Fprintf(b, "\nThe standard error is at most %.1f %% for %d of %d figures", 100*goodError, good, all)
	if good < all {
		fmt.Fprintf(b, ", and at most %.1f %% for the others", 100*most)
	}
	b.WriteString(".\n")
}

// writeTimes writes what clients saw.
func writeTimes(b *strings.Builder, results []result) {
	b.WriteString("MB/s; milliseconds from a request to its last byte: median, and what one in a hundred exceeds.\n\n")
	g := newGrid(results)
	columns := g.columns()
	for _, c := range columns {
		fmt.Fprintf(b, "| %s ", c.head)
	}
	b.WriteString("|")
	for _, server := range g.servers {
		fmt.Fprintf(b, " %s: MB/s | median | p99 |", server)
	}
	b.WriteByte('\n')
	for _, c := range columns {
		fmt.Fprintf(b, "| %s ", c.rule)
	}
	b.WriteString("|" + strings.Repeat(" --: | --: | --: |", len(g.servers)) + "\n")
	for _, row := range g.rows {
		for _, c := range columns {
			fmt.Fprintf(b, "| %s ", c.cell(row))
		}
		b.WriteString("|")
		for _, server := range g.servers {
			if r := g.cells[server][row]; r == nil {
				b.WriteString(" | | |")
			} else {
				fmt.Fprintf(b, " %s | %s | %s |", threeDigits(r.throughput()/1e6), threeDigits(float64(r.Time.Median)/1e6), threeDigits(float64(r.Time.P99)/1e6))
			}
		}
		b.WriteByte('\n')
	}
}

// writeMemory writes what connections take, a row for each server.
func writeMemory(b *strings.Builder, results []result) {
	g := newGrid(results)
	b.WriteString("Idle: KiB for each connection. Slow: MiB for all clients together, at the highest.\n\n")
	b.WriteString("|  |  | connections | server's memory | Go heap | Go stacks | kernel's slab | TCP's buffers |\n")
	b.WriteString("| --- | --- | --: | --: | --: | --: | --: | --: |\n")
	for _, row := range g.rows {
		for _, server := range g.servers {
			r := g.cells[server][row]
			if r == nil {
				continue
			}
			scale := 1024.0
			if row.Mode == slow {
				scale = 1 << 20
			}
			fmt.Fprintf(b, "| %s, %s | %s | %d |", map[mode]string{idling: "idle", slow: "slow"}[row.Mode], protocolNames[row.Protocol], server, row.Connections)
			u := r.Memory
			for i, n := range []int64{u.Anonymous, u.Heap, u.Stack, u.Slab, u.Sockets} {
				if n == 0 && i < 4 { // not known
					b.WriteString(" |")
					continue
				}
				fmt.Fprintf(b, " %.1f |", float64(n)/scale)
			}
			b.WriteByte('\n')
		}
	}
}

// compared says whether a server's figures are divided by the stock one's.
func compared(server string, all []string) bool {
	return server != stock && slices.Contains(all, stock)
}

// writeVersions says what was measured, and for which the kernel encrypted.
func writeVersions(b *strings.Builder, results []result) {
	var seen []string
	for _, r := range results {
		line := fmt.Sprintf("- %s: %s; ", r.Server, r.Version)
		if r.Cipher == "" {
			line += "no TLS"
		} else {
			line += r.Cipher + ", " + r.Curve
		}
		if slices.Contains(seen, line) {
			continue
		}
		seen = append(seen, line)
		b.WriteString(line)
		if slices.ContainsFunc(results, func(other result) bool {
			return other.Server == r.Server && other.Cipher == r.Cipher && other.KernelTLS > 0
		}) {
			b.WriteString("; kernel TLS")
		}
		b.WriteByte('\n')
	}
}

// threeDigits writes a number with at least three digits.
func threeDigits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func sizeName(n int64) string {
	if n >= 1<<20 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}
