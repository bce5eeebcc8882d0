package caddyktls

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dashboard is what is looked at of docs/grafana.json (@grafana/schema,
// Dashboard).
type dashboard struct {
	UID, Title    string
	SchemaVersion int
	Panels        []panel
	Templating    struct {
		List []struct {
			Name, Type string
			Query      json.RawMessage
		}
	}
}

type panel struct {
	ID      int
	Type    string
	Title   string
	GridPos struct{ X, Y, W, H int }
	Targets []struct {
		RefID, Expr string
		Datasource  struct{ Type, UID string }
	}
	Datasource  struct{ Type, UID string }
	FieldConfig struct{ Defaults struct{ Unit string } }
	Panels      []panel
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	b, err := os.ReadFile("docs/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestDashboardLayout: panels have a number each, a unit, a data source that the
// user can choose, and a place of their own on the grid of 24 columns.
func TestDashboardLayout(t *testing.T) {
	d := readDashboard(t)
	if d.UID == "" || d.Title == "" || d.SchemaVersion < 38 || len(d.Panels) < 15 {
		t.Errorf("uid %q, title %q, schema %d, %d panels", d.UID, d.Title, d.SchemaVersion, len(d.Panels))
	}
	if l := d.Templating.List; len(l) == 0 || l[0].Name != "datasource" || l[0].Type != "datasource" || string(l[0].Query) != `"prometheus"` {
		t.Errorf("the first variable isn't the data source: %+v", l)
	}
	ids := map[int]bool{}
	places := map[[2]int]string{}
	for _, p := range d.Panels {
		if p.ID <= 0 || ids[p.ID] {
			t.Errorf("%s: number %d is no good, or there twice", p.Title, p.ID)
		}
		ids[p.ID] = true
		g := p.GridPos
		if g.X < 0 || g.Y < 0 || g.W < 1 || g.H < 1 || g.X+g.W > 24 || p.Title == "" {
			t.Errorf("%s: %+v", p.Title, g)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other := places[[2]int{x, y}]; other != "" {
					t.Fatalf("%s is on top of %s", p.Title, other)
				}
				places[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			if len(p.Panels) > 0 || g.W != 24 {
				t.Errorf("row %s: %+v", p.Title, p)
			}
			continue
		}
		if p.FieldConfig.Defaults.Unit == "" || p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("%s: %+v", p.Title, p)
		}
		refs := map[string]bool{}
		for _, q := range p.Targets {
			if q.RefID == "" || refs[q.RefID] || q.Datasource.UID != "${datasource}" || q.Expr == "" {
				t.Errorf("%s: query %+v", p.Title, q)
			}
			refs[q.RefID] = true
		}
	}
}

var (
	selectorPattern = regexp.MustCompile(`([a-z_]+)\{([^}]*)\}`)
	matcherPattern  = regexp.MustCompile(`^([a-z_]+)(=|=~)"([^"]*)"$`)
	byPattern       = regexp.MustCompile(`\bby \(([^)]*)\)`)
)

// TestDashboardQueries: each query is of metrics that there are, by labels and
// values that they have, and each metric is shown.
func TestDashboardQueries(t *testing.T) {
	metrics, values := metricsList(t), labelValues(t)
	shown := map[string]bool{}
	var reasons []string
	for code := range reasonCodes(t) {
		reasons = append(reasons, code)
	}
	check := func(title, expr string) {
		if strings.Count(expr, "(") != strings.Count(expr, ")") || strings.Count(expr, "[") != strings.Count(expr, "]") {
			t.Errorf("%s: brackets of %s", title, expr)
		}
		var labels []string
		all := selectorPattern.FindAllStringSubmatch(expr, -1)
		if len(all) == 0 || len(all) != strings.Count(expr, "caddy_ktls_") {
			t.Errorf("%s: metrics without a selector in %s", title, expr)
		}
		for _, m := range all {
			name, of := m[1], []string{"job", "instance"} // those of any target
			if _, ok := metrics[name]; !ok {
				for _, suffix := range []string{"_bucket", "_sum", "_count"} {
					base, ok := strings.CutSuffix(name, suffix)
					if ok && metrics[base].kind == "histogram" {
						name = base
						if suffix == "_bucket" {
							of = append(of, "le")
						}
					}
				}
			}
			metric, ok := metrics[name]
			if !ok {
				t.Errorf("%s: there is no metric %s", title, name)
			}
			shown[name] = true
			of = append(of, metric.labels...)
			labels = append(labels, of...)
			for matcher := range strings.SplitSeq(m[2], ",") {
				parts := matcherPattern.FindStringSubmatch(matcher)
				if parts == nil || !slices.Contains(of, parts[1]) {
					t.Errorf("%s: %s has no label for %s", title, name, matcher)
					continue
				}
				known := values[name][parts[1]]
				if parts[1] == "reason" {
					known = reasons
				}
				if parts[2] == "=" && !slices.Contains(known, parts[3]) {
					t.Errorf("%s: %s is never %s", title, name, matcher)
				}
			}
		}
		for _, m := range byPattern.FindAllStringSubmatch(expr, -1) {
			for label := range strings.SplitSeq(m[1], ", ") {
				if !slices.Contains(labels, label) {
					t.Errorf("%s: no label %s in %s", title, label, expr)
				}
			}
		}
	}
	for _, p := range readDashboard(t).Panels {
		for _, q := range p.Targets {
			check(p.Title, q.Expr)
		}
	}
	for name := range metrics {
		if !shown[name] {
			t.Errorf("%s isn't shown", name)
		}
	}
}
