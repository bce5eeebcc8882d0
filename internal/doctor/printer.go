package doctor

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Columns of a report for people.
const (
	width     = 80
	textStart = 22 // where what is said of a label begins
	cellWidth = 14
)

// Colours, as ECMA-48's SGR has them.
const (
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	reset  = "\x1b[m"
)

// printer collects a report.
type printer struct {
	strings.Builder
	colour bool
}

func (p *printer) paint(sgr, text string) string {
	if !p.colour || sgr == "" || text == "" {
		return text
	}
	return sgr + text + reset
}

func (p *printer) heading(text string) {
	if p.Len() > 0 {
		p.WriteByte('\n')
	}
	p.WriteString(p.paint(bold, text) + "\n")
}

// row writes a label and what is said of it. If text begins with mark, that is
// painted.
func (p *printer) row(label, text, mark, sgr string) {
	p.block(fmt.Sprintf("  %-*s", textStart-2, label), clean(text), mark, sgr)
}

// block writes text, with a first line that begins with prefix and others that
// are indented as much.
func (p *printer) block(prefix, text, mark, sgr string) {
	indent := utf8.RuneCountInString(prefix)
	for i, line := range wrap(text, width-indent) {
		if i > 0 {
			prefix = strings.Repeat(" ", indent)
		} else if rest, ok := strings.CutPrefix(line, mark); ok {
			line = p.paint(sgr, mark) + rest
		}
		p.WriteString(strings.TrimRight(prefix+line, " ") + "\n")
	}
}

const couldNotTell = "could not tell"

func (p *printer) unknown(label, why string) {
	text := couldNotTell
	if why != "" {
		text += ": " + why
	}
	p.row(label, text, couldNotTell, yellow)
}

// clean takes from text what a terminal would obey instead of show.
func clean(text string) string {
	return strings.Map(func(c rune) rune {
		if c == utf8.RuneError || !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, text)
}

// wrap breaks text into lines of at most width columns, longer words included.
func wrap(text string, width int) []string {
	lines := []string{""}
	n := 0 // columns of the last line
	for _, word := range strings.Fields(text) {
		w := []rune(word)
		if n > 0 && n+1+len(w) <= width {
			lines[len(lines)-1] += " " + word
			n += 1 + len(w)
			continue
		}
		if n > 0 {
			lines = append(lines, "")
		}
		for len(w) > width {
			lines[len(lines)-1] = string(w[:width])
			lines = append(lines, "")
			w = w[width:]
		}
		lines[len(lines)-1] = string(w)
		n = len(w)
	}
	return lines
}
