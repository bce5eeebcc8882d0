package caddyktls

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-ktls/caddy-ktls/internal/doctor"
	"github.com/caddy-ktls/caddy-ktls/ktls"
)

const (
	wrapperPage = "docs/listener-wrapper.md"
	handlerPage = "docs/handler.md"
	explainPage = "docs/explain.md"
)

// documents are the pages for users.
func documents(t *testing.T) []string {
	t.Helper()
	pages, err := filepath.Glob("docs/*.md")
	if err != nil || len(pages) < 4 {
		t.Fatalf("pages: %v, %v", pages, err)
	}
	return append(pages, "README.md", "SECURITY.md")
}

func readPage(t *testing.T, page string) string {
	t.Helper()
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// block is a fenced code block of a page.
type block struct {
	line     int
	language string
	text     string
}

func blocks(t *testing.T, page string) []block {
	t.Helper()
	var all []block
	open := false
	n := 0
	for line := range strings.Lines(readPage(t, page)) {
		n++
		language, fence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && !open:
			all = append(all, block{line: n, language: language})
			open = true
		case fence:
			open = false
		case open:
			all[len(all)-1].text += line
		}
	}
	if open {
		t.Fatalf("%s: a code block has no end", page)
	}
	return all
}

// tableRows returns the rows of a page's tables whose first cell is of one code
// word or more: cells, trimmed.
func tableRows(t *testing.T, page string) [][]string {
	t.Helper()
	var rows [][]string
	for line := range strings.Lines(readPage(t, page)) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	return rows
}

var codeSpan = regexp.MustCompile("`([^`]+)`")

// codes are the code spans in text, without the backquotes.
func codes(text string) []string {
	var all []string
	for _, m := range codeSpan.FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

// sameNames compares what the docs have with what there is.
func sameNames(t *testing.T, what string, got, want []string) {
	t.Helper()
	for _, name := range want {
		if !slices.Contains(got, name) {
			t.Errorf("%s: %s is missing", what, name)
		}
	}
	for i, name := range got {
		if !slices.Contains(want, name) {
			t.Errorf("%s: there is no %s", what, name)
		}
		if slices.Contains(got[:i], name) {
			t.Errorf("%s: %s is there twice", what, name)
		}
	}
	if len(want) == 0 {
		t.Errorf("%s: nothing to compare with", what)
	}
}

// TestDocsCaddyfiles: each block marked as a Caddyfile is a whole one, which
// `caddy validate` takes, in the form that `caddy fmt` gives it.
func TestDocsCaddyfiles(t *testing.T) {
	home := t.TempDir()
	t.Setenv("XDG_DATA_HOME", home)
	t.Setenv("XDG_CONFIG_HOME", home)
	t.Setenv("HOME", home)
	n := 0
	for _, page := range documents(t) {
		for _, b := range blocks(t, page) {
			if b.language != "caddyfile" {
				continue
			}
			n++
			t.Run(fmt.Sprintf("%s:%d", page, b.line), func(t *testing.T) {
				_, warnings, err := adapt(b.text)
				if err != nil {
					t.Fatal(err)
				}
				for _, w := range warnings {
					t.Errorf("warning: %s", w)
				}
				file := filepath.Join(t.TempDir(), "Caddyfile")
				if err := os.WriteFile(file, []byte(b.text), 0o600); err != nil {
					t.Fatal(err)
				}
				if stdout, stderr, status := caddyCommand(t, "validate --adapter caddyfile --config "+file); status != 0 {
					t.Errorf("exit status %d: %s%s", status, stdout, stderr)
				}
			})
		}
	}
	if n < 8 {
		t.Errorf("only %d Caddyfiles were found", n)
	}
}

// jsonNames are the members that the exported fields of a struct have in JSON.
func jsonNames(v reflect.Type) []string {
	var names []string
	for f := range v.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.IsExported() && name != "-" {
			names = append(names, name)
		}
	}
	return names
}

// caddyfileOptions are the options that UnmarshalCaddyfile of a type knows.
func caddyfileOptions(t *testing.T, receiver string) []string {
	t.Helper()
	var names []string
	inspect(t, "caddyfile.go", func(n ast.Node) {
		f, ok := n.(*ast.FuncDecl)
		if !ok || f.Name.Name != "UnmarshalCaddyfile" || f.Recv.List[0].Type.(*ast.StarExpr).X.(*ast.Ident).Name != receiver {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.SwitchStmt); ok && s.Init != nil {
				for _, c := range s.Body.List {
					for _, e := range c.(*ast.CaseClause).List {
						names = append(names, literal(t, e))
					}
				}
			}
			return true
		})
	})
	return names
}

// syntaxOptions are the options in a syntax block: the lines within `ktls … {`.
func syntaxOptions(text string) []string {
	_, text, _ = strings.Cut(text, "ktls ")
	_, text, _ = strings.Cut(text, "{\n")
	text, _, _ = strings.Cut(text, "}")
	var names []string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 0 {
			names = append(names, f[0])
		}
	}
	return names
}

// TestDocsOptions: the pages have every option, and no other: as headings, in
// the syntax, and in an example in JSON that the module takes.
func TestDocsOptions(t *testing.T) {
	for _, m := range []struct {
		page, receiver, head string
		module               any
		arguments            []string // in JSON members, no options in the Caddyfile
	}{
		{wrapperPage, "ListenerWrapper", "ktls {\n", new(ListenerWrapper), nil},
		{handlerPage, "Handler", "ktls [<matcher>] [off] {\n", new(Handler), []string{"off"}},
	} {
		members := jsonNames(reflect.TypeOf(m.module).Elem())
		options := caddyfileOptions(t, m.receiver)
		sameNames(t, m.receiver+", Caddyfile and JSON", slices.Concat(options, m.arguments), members)

		_, text, _ := strings.Cut(readPage(t, m.page), "\n## Options\n")
		text, _, _ = strings.Cut(text, "\n## ")
		var headings []string
		for line := range strings.Lines(text) {
			if heading, ok := strings.CutPrefix(line, "### "); ok {
				headings = append(headings, codes(heading)...)
			}
		}
		sameNames(t, m.page+", headings", headings, members)

		for _, page := range []string{m.page, "README.md"} {
			found := false
			for _, b := range blocks(t, page) {
				if b.language == "" && strings.Contains(b.text, m.head) {
					sameNames(t, page+", syntax", syntaxOptions(b.text), options)
					found = true
				}
			}
			if !found {
				t.Errorf("%s has no syntax of %s", page, m.receiver)
			}
		}

		found := false
		for _, b := range blocks(t, m.page) {
			if b.language != "json" {
				continue
			}
			found = true
			var has map[string]json.RawMessage
			if err := json.Unmarshal([]byte(b.text), &has); err != nil {
				t.Fatalf("%s:%d: %v", m.page, b.line, err)
			}
			delete(has, "wrapper") // Caddy's own members
			delete(has, "handler")
			sameNames(t, m.page+", JSON", slices.Collect(maps.Keys(has)), members)
			if err := json.Unmarshal([]byte(b.text), m.module); err != nil {
				t.Errorf("%s:%d: %v", m.page, b.line, err)
			}
		}
		if !found {
			t.Errorf("%s has no JSON", m.page)
		}
	}
}

// TestDocsFileSystems: the lists of file systems are those of the code.
func TestDocsFileSystems(t *testing.T) {
	var trusted []string
	distrusted := []string{unknownFS}
	for _, f := range fileSystems {
		if f.local {
			trusted = append(trusted, f.name)
		} else {
			distrusted = append(distrusted, f.name)
		}
	}
	for name, want := range map[string][]string{"ext4": trusted, "fuse": distrusted} {
		found := false
		for paragraph := range strings.SplitSeq(readPage(t, handlerPage), "\n\n") {
			if i := strings.Index(paragraph, "`"+name+"`"); i >= 0 {
				found = true
				sameNames(t, "file systems like "+name, codes(paragraph[i:]), want)
			}
		}
		if !found {
			t.Errorf("no list of file systems like %s", name)
		}
	}
}

var descPattern = regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)

// metricsList are the collectors' names, each with its type and labels.
func metricsList(t *testing.T) map[string]struct {
	kind   string
	labels []string
} {
	t.Helper()
	list := map[string]struct {
		kind   string
		labels []string
	}{}
	for _, c := range collectors() {
		kind := "gauge"
		switch c.(type) {
		case *prometheus.CounterVec:
			kind = "counter"
		case *prometheus.HistogramVec:
			kind = "histogram"
		}
		descs := make(chan *prometheus.Desc, 1)
		c.Describe(descs)
		m := descPattern.FindStringSubmatch((<-descs).String())
		if m == nil {
			t.Fatalf("a description of %T isn't understood", c)
		}
		entry := list[m[1]]
		entry.kind = kind
		entry.labels = strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' })
		list[m[1]] = entry
	}
	return list
}

// labelValues are the values of labels that there can be, by metric and label;
// without the reasons, which have tests of their own.
func labelValues(t *testing.T) map[string]map[string][]string {
	t.Helper()
	for _, v := range []uint16{0, tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		for _, c := range []ktls.Cipher{0, ktls.AES128GCM, ktls.AES256GCM, ktls.CHACHA20POLY1305} {
			countUpgrade(ktls.Info{Version: v, Cipher: c}, nil)
		}
	}
	countUpgrade(ktls.Info{}, &ktls.UpgradeError{Reason: ktls.ReasonCipher, Err: errors.New("test")})
	countResponse(pathSendfile, "", 1)
	countResponse(pathPlain, reasonTooSmall, 1)
	for _, err := range []error{nil, errNotAdmitted, errors.New("test")} {
		countHandshake(time.Now(), err)
	}
	for _, err := range []error{nil, ktls.ErrKeyUpdate, ktls.ErrKeyUpdateFlood, errors.New("test")} {
		countRekey(true, err)
		countRekey(false, err)
	}
	countReceiving(nil)
	countReceiving(&ktls.UpgradeError{Reason: ktls.ReasonKernel, Err: errors.New("test")})
	families, err := mustOwnRegistry(t).Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]map[string][]string{}
	for _, family := range families {
		of := map[string][]string{}
		values[family.GetName()] = of
		for _, m := range family.Metric {
			for label, value := range labels(m) {
				if label != "reason" && !slices.Contains(of[label], value) {
					of[label] = append(of[label], value)
				}
			}
		}
	}
	return values
}

// TestDocsMetrics: the list of metrics has every one, with its type, its labels
// and their values, and no other.
func TestDocsMetrics(t *testing.T) {
	metrics, values := metricsList(t), labelValues(t)
	var names []string
	for _, row := range tableRows(t, explainPage) {
		if !strings.HasPrefix(row[0], "`caddy_ktls_") {
			continue
		}
		name := codes(row[0])[0]
		names = append(names, name)
		metric := metrics[name]
		if row[1] != metric.kind {
			t.Errorf("%s is a %s, not a %s", name, metric.kind, row[1])
		}
		var has []string
		for part := range strings.SplitSeq(row[2], ";") {
			all := codes(part)
			if len(all) == 0 {
				continue
			}
			has = append(has, all[0])
			for _, value := range values[name][all[0]] {
				if !slices.Contains(all[1:], value) {
					t.Errorf("%s, label %s: %q is missing", name, all[0], value)
				}
			}
			for _, value := range all[1:] {
				if !slices.Contains(values[name][all[0]], value) {
					t.Errorf("%s, label %s: there is no %q", name, all[0], value)
				}
			}
		}
		if len(has) > 0 || len(metric.labels) > 0 {
			sameNames(t, name+", labels", has, metric.labels)
		}
	}
	sameNames(t, explainPage+", metrics", names, slices.Collect(maps.Keys(metrics)))
}

var answerType = reflect.TypeFor[ktls.Answer]()

// memberPaths are the members that a type has in JSON, those of lists with [].
func memberPaths(v reflect.Type, path string) []string {
	switch v.Kind() {
	case reflect.Pointer:
		return memberPaths(v.Elem(), path)
	case reflect.Slice:
		return memberPaths(v.Elem(), path+"[]")
	case reflect.Struct:
		if v == answerType || v == reflect.TypeFor[time.Time]() {
			return nil
		}
		var all []string
		if v == reflect.TypeFor[ktls.Features]() { // see its MarshalJSON
			all = append(all, path+".usable", path+".reason")
		}
		for f := range v.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !f.IsExported() || name == "-" {
				continue
			}
			at := strings.TrimPrefix(path+"."+name, ".")
			all = append(append(all, at), memberPaths(f.Type, at)...)
		}
		return all
	}
	return nil
}

// pathsIn are those of a decoded answer; what maps have isn't looked at.
func pathsIn(v any, path string, leaf func(path string) bool) []string {
	if leaf(path) {
		return nil
	}
	var all []string
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			all = append(all, pathsIn(e, path+"[]", leaf)...)
		}
	case map[string]any:
		for name, e := range v {
			at := strings.TrimPrefix(path+"."+name, ".")
			all = append(append(all, at), pathsIn(e, at, leaf)...)
		}
	}
	return all
}

// TestDocsAdminAPI: the page has every member of the answer of GET /ktls/, and
// no other.
func TestDocsAdminAPI(t *testing.T) {
	_, text, _ := strings.Cut(readPage(t, explainPage), "\n## Admin API\n")
	text, _, _ = strings.Cut(text, "\n## ")
	var has []string
	types := map[string]string{}
	for line := range strings.Lines(text) {
		if cells := strings.Split(line, "|"); len(cells) > 3 && strings.HasPrefix(line, "| `") {
			name := codes(cells[1])[0]
			has = append(has, name)
			types[name] = strings.TrimSpace(cells[2])
		}
	}
	sameNames(t, explainPage+", GET /ktls/", has, memberPaths(reflect.TypeFor[status](), ""))
	var answer []string
	if _, sentence, ok := strings.Cut(text, "\nAn answer has "); ok {
		answer = codes(sentence)
	}
	for _, name := range jsonNames(answerType) {
		if !slices.Contains(answer, name) {
			t.Errorf("%s: %s of an answer is missing", explainPage, name)
		}
	}

	// A real one, with everything in it.
	labelValues(t)
	w := &ListenerWrapper{server: &caddyhttp.Server{Listen: []string{":443"}}}
	servers.add(w)
	defer servers.remove(w)
	rec := httptest.NewRecorder()
	if err := serveStatus(rec, httptest.NewRequest(http.MethodGet, "/ktls/", nil)); err != nil {
		t.Fatal(err)
	}
	var real any
	if err := json.Unmarshal(rec.Body.Bytes(), &real); err != nil {
		t.Fatal(err)
	}
	for _, path := range pathsIn(real, "", func(path string) bool {
		return strings.HasPrefix(types[path], "object of") || types[path] == "answer"
	}) {
		if !slices.Contains(has, path) {
			t.Errorf("%s: a real answer has %s", explainPage, path)
		}
	}
}

// TestDocsDoctor: the page has every member that `caddy ktls --json` prints.
func TestDocsDoctor(t *testing.T) {
	_, text, _ := strings.Cut(readPage(t, explainPage), "\n## `caddy ktls`\n")
	var has []string
	for line := range strings.Lines(text) {
		if cells := strings.Split(line, "|"); strings.HasPrefix(line, "| `") {
			has = append(has, codes(cells[1])...)
		}
	}
	sameNames(t, explainPage+", caddy ktls", has, jsonNames(reflect.TypeFor[doctor.Report]()))
	for status := range exitUsage + 1 {
		if !strings.Contains(text, fmt.Sprintf("\n| %d | ", status)) {
			t.Errorf("%s: nothing of exit status %d", explainPage, status)
		}
	}
}

var (
	linkPattern = regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]+))?\)`)
	notInAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// TestDocsLinks: links between the pages lead somewhere.
func TestDocsLinks(t *testing.T) {
	for _, page := range documents(t) {
		for _, m := range linkPattern.FindAllStringSubmatch(readPage(t, page), -1) {
			target := page
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(page), m[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", page, err)
				continue
			}
			found := m[2] == ""
			for line := range strings.Lines(readPage(t, target)) {
				if heading, ok := strings.CutPrefix(line, "#"); ok && !found {
					heading = strings.ToLower(strings.TrimSpace(strings.TrimLeft(heading, "#")))
					found = strings.ReplaceAll(notInAnchor.ReplaceAllString(heading, ""), " ", "-") == m[2]
				}
			}
			if !found {
				t.Errorf("%s: %s has no heading %s", page, target, m[2])
			}
		}
	}
}

// TestDocsTests: the tests that the pages name as witnesses exist.
func TestDocsTests(t *testing.T) {
	tests := map[string]bool{}
	for _, pattern := range []string{"*_test.go", "ktls/*_test.go", "integration/*_test.go", "internal/*/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, file := range files {
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(readPage(t, file), -1) {
				tests[m[1]] = true
			}
		}
	}
	named := 0
	for _, page := range documents(t) {
		for _, name := range regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(readPage(t, page), -1) {
			if named++; !tests[name] {
				t.Errorf("%s: there is no %s", page, name)
			}
		}
	}
	if named < 30 {
		t.Errorf("only %d tests are named", named)
	}
}
