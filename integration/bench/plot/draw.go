package main

import (
	"bytes"
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Colours are to be read on white and on dark pages alike: nothing is behind them.
var (
	ink  = color.NRGBA{R: 0x80, G: 0x80, B: 0x80, A: 0xff}
	grid = color.NRGBA{R: 0x80, G: 0x80, B: 0x80, A: 0x48}
)

// A style is how a server's line looks. The order is that of the legend.
type style struct {
	order  int
	name   string
	colour color.NRGBA
	dashes []vg.Length
	glyph  draw.GlyphDrawer
}

var dashed = []vg.Length{vg.Points(5), vg.Points(3)}

// The colours are of about the same, middle lightness.
var styles = map[string]style{
	"caddy":         {0, "Caddy", color.NRGBA{0xd1, 0x6a, 0x1b, 0xff}, nil, draw.CircleGlyph{}},
	"caddy-ktls":    {1, "Caddy with this module", color.NRGBA{0x1a, 0x8f, 0xd6, 0xff}, nil, draw.BoxGlyph{}},
	"caddy-ktls-1m": {2, "the same, frames of 1 MiB", color.NRGBA{0x1a, 0x8f, 0xd6, 0xff}, dashed, draw.SquareGlyph{}},
	"nginx":         {3, "nginx", color.NRGBA{0x2f, 0x9e, 0x44, 0xff}, nil, draw.TriangleGlyph{}},
	"nginx-ktls":    {4, "nginx with kTLS", color.NRGBA{0x2f, 0x9e, 0x44, 0xff}, dashed, draw.PyramidGlyph{}},
	"lighttpd":      {5, "lighttpd", color.NRGBA{0xb5, 0x55, 0xc9, 0xff}, nil, draw.PlusGlyph{}},
	"caddy-clear":   {6, "Caddy, no TLS", color.NRGBA{0x8a, 0x8a, 0x8a, 0xff}, nil, draw.RingGlyph{}},
	"nginx-clear":   {7, "nginx, no TLS", color.NRGBA{0x8a, 0x8a, 0x8a, 0xff}, dashed, draw.CrossGlyph{}},
}

func styleOf(server string) style {
	if s, ok := styles[server]; ok {
		return s
	}
	return style{len(styles), server, ink, nil, draw.CrossGlyph{}}
}

const (
	width  = 22 * vg.Centimeter
	height = 14 * vg.Centimeter
)

// svg draws the chart. Both axes are logarithmic: a small body costs a hundred times
// more for each of its bytes than a large one.
func (c *chart) svg() ([]byte, error) {
	p := plot.New()
	p.BackgroundColor = color.Transparent
	unit := "10⁹ instructions"
	if c.seconds {
		unit = "seconds of CPU"
	}
	p.Title.Text = fmt.Sprintf("%s: what a GiB costs the server, Linux %s", map[string]string{"h1": "HTTP/1.1", "h2": "HTTP/2"}[c.protocol], c.kernel)
	p.X.Label.Text = "body of a response"
	p.Y.Label.Text = unit + " per GiB"
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	sans := func(size vg.Length) font.Font { return font.Font{Typeface: "Liberation", Variant: "Sans", Size: size} }
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Color, axis.Tick.Color, axis.Tick.Label.Color, axis.Label.TextStyle.Color = ink, ink, ink, ink
		axis.Label.TextStyle.Font, axis.Tick.Label.Font = sans(11), sans(10)
		axis.Label.Padding = 6
	}
	p.Title.TextStyle.Color, p.Title.TextStyle.Font, p.Title.Padding = ink, sans(13), 8
	p.Legend.TextStyle.Color, p.Legend.TextStyle.Font = ink, sans(10)
	// Names begin at the left, as a viewer's font may be wider than the one they are
	// measured by.
	p.Legend.Top, p.Legend.Left, p.Legend.Padding, p.Legend.ThumbnailWidth = true, true, 3, vg.Points(32)
	p.Legend.XOffs = 0.6 * width

	lines := plotter.NewGrid()
	lines.Vertical.Color, lines.Horizontal.Color = grid, grid
	p.Add(lines)
	lowest, highest := math.Inf(1), 0.0
	var bodies []int64
	for _, l := range c.lines {
		var xys plotter.XYs
		for _, at := range l.points {
			xys = append(xys, plotter.XY{X: float64(at.body), Y: at.cost})
			lowest, highest = min(lowest, at.cost), max(highest, at.cost)
			bodies = append(bodies, at.body)
		}
		line, glyphs, err := plotter.NewLinePoints(xys)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.server, err)
		}
		s := styleOf(l.server)
		line.Color, line.Width, line.Dashes = s.colour, vg.Points(1.8), s.dashes
		glyphs.Color, glyphs.Shape, glyphs.Radius = s.colour, s.glyph, vg.Points(3)
		p.Add(line, glyphs)
		p.Legend.Add(s.name, line, glyphs)
	}
	p.X.Tick.Marker, p.Y.Tick.Marker = bodyTicks(bodies), costTicks(lowest, highest)
	p.Y.Min, p.Y.Max = lowest*0.9, highest*1.1

	canvas := vgsvg.NewWith(vgsvg.UseWH(width, height))
	p.Draw(draw.Crop(draw.New(canvas), vg.Points(4), -vg.Points(12), vg.Points(4), -vg.Points(4)))
	var out bytes.Buffer
	_, err := canvas.WriteTo(&out)
	// Who hasn't this font takes one that is as wide, or any without serifs.
	return bytes.ReplaceAll(out.Bytes(), []byte("font-family:Liberation Sans"), []byte("font-family:Liberation Sans,Arial,sans-serif")), err
}

// bodyTicks marks the bodies that were measured.
func bodyTicks(bodies []int64) plot.ConstantTicks {
	var ticks plot.ConstantTicks
	seen := make(map[int64]bool)
	for _, n := range bodies {
		if seen[n] {
			continue
		}
		seen[n] = true
		label := fmt.Sprintf("%d KiB", n>>10)
		if n >= 1<<20 {
			label = fmt.Sprintf("%d MiB", n>>20)
		}
		ticks = append(ticks, plot.Tick{Value: float64(n), Label: label})
	}
	return ticks
}

// costTicks marks 1, 2, 3, 5 and 7 of each power of ten.
func costTicks(lowest, highest float64) (ticks plot.ConstantTicks) {
	for power := math.Pow(10, math.Floor(math.Log10(lowest))); power <= highest; power *= 10 {
		for _, n := range []float64{1, 2, 3, 5, 7} {
			if v := n * power; v >= lowest*0.9 && v <= highest*1.1 {
				ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%.3g", v)})
			}
		}
	}
	return ticks
}
