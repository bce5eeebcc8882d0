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

// writeTables writes the results as Markdown: for each kernel and protocol a
// table, with a row for each scenario and a column for each server.
func writeTables(out io.Writer, results []result) error {
	var b strings.Builder
	type page struct{ kernel, protocol string }
	pages := make(map[page][]result)
	var order []page
	for _, r := range results {
		p := page{r.Kernel, r.Protocol}
		if pages[p] == nil {
			order = append(order, p)
		}
		pages[p] = append(pages[p], r)
	}
	slices.SortStableFunc(order, func(a, b page) int { return cmp.Compare(a.protocol, b.protocol) })
	for _, p := range order {
		fmt.Fprintf(&b, "### %s, Linux %s\n\n", protocolNames[p.protocol], p.kernel)
		writeTable(&b, pages[p])
		b.WriteByte('\n')
	}
	writeVersions(&b, results)
	_, err := io.WriteString(out, b.String())
	return err
}

var protocolNames = map[string]string{"h1": "HTTP/1.1", "h2": "HTTP/2"}

// writeTable writes one table.
func writeTable(b *strings.Builder, results []result) {
	var servers []string
	var rows []scenario // Requests is 0
	cells := make(map[string]map[scenario]*result)
	for i := range results {
		r := &results[i]
		row := r.scenario
		row.Requests = 0
		if !slices.Contains(servers, r.Server) {
			servers = append(servers, r.Server)
			cells[r.Server] = make(map[scenario]*result)
		}
		if !slices.Contains(rows, row) {
			rows = append(rows, row)
		}
		cells[r.Server][row] = r
	}
	b.WriteString("| body | connections | ")
	if rows[0].Protocol == "h2" {
		b.WriteString("streams | ")
	}
	b.WriteString("|")
	for _, server := range servers {
		fmt.Fprintf(b, " %s |", server)
		if compared(server, servers) {
			b.WriteString(" ratio |")
		}
	}
	b.WriteString("\n| --: | --: | ")
	if rows[0].Protocol == "h2" {
		b.WriteString("--: | ")
	}
	b.WriteString("--- |")
	for _, server := range servers {
		b.WriteString(" --: |")
		if compared(server, servers) {
			b.WriteString(" --: |")
		}
	}
	b.WriteByte('\n')
	for _, row := range rows {
		connections := fmt.Sprint(row.Connections)
		if row.Mode == handshaking {
			connections = "new"
		}
		fmt.Fprintf(b, "| %s | %s |", sizeName(row.Body), connections)
		if row.Protocol == "h2" {
			fmt.Fprintf(b, " %d |", row.Streams)
		}
		value, unit := (*result).perRequest, "10³/request"
		scale := 1e3
		if row.Body >= storingFrom {
			value, unit, scale = (*result).perGiB, "10⁹/GiB", 1e9
		}
		fmt.Fprintf(b, " %s |", unit)
		base := cells[stock][row]
		for _, server := range servers {
			r := cells[server][row]
			if r == nil {
				b.WriteString(" |")
			} else {
				fmt.Fprintf(b, " %s |", threeDigits(value(r)/scale))
			}
			if !compared(server, servers) {
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

// compared says whether a server's figures are divided by the stock one's.
func compared(server string, all []string) bool {
	return server != stock && slices.Contains(all, stock)
}

// writeVersions says what was measured.
func writeVersions(b *strings.Builder, results []result) {
	var seen []string
	for _, r := range results {
		if line := fmt.Sprintf("- %s: %s; %s, %s\n", r.Server, r.Version, r.Cipher, r.Curve); !slices.Contains(seen, line) {
			seen = append(seen, line)
			b.WriteString(line)
		}
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
