//go:build linux

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"image"
	"image/color"
	"image/png"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestChromium: a page with fifty images, a font of its own and a video that is
// sought in looks to a browser as it should, and all of its bytes are right.
func TestChromium(t *testing.T) {
	if slow {
		t.Skip("Chromium takes minutes on an emulated CPU; User-Mode Linux shows the same")
	}
	page := makePage(t)
	c := start(t, listener{wrappers: "ktls", sites: []site{{body: filesFrom(page.root,
		// Which types a machine knows is its own affair; what has none isn't sent by sendfile.
		"header *.ttf Content-Type font/ttf", "header *.webm Content-Type video/webm")}}})
	upgrades := countUpgrades(t)
	b := startChromium(t)
	b.open(t, c.url(0, "/"))

	uris := slices.Sorted(maps.Keys(page.files))
	video := page.files["/video.webm"]
	parts := []struct {
		header string
		want   []byte
	}{
		{"bytes=0-99999", video[:100_000]},
		{"bytes=1000000-2999999", video[1_000_000:3_000_000]},
		{"bytes=-100001", video[len(video)-100_001:]},
	}
	var ranges []string
	for _, p := range parts {
		ranges = append(ranges, p.header)
	}
	args, err := json.Marshal([]any{pageSeeks, uris, ranges})
	if err != nil {
		t.Fatal(err)
	}
	var r pageReport
	b.evaluate(t, &r, "report(..."+string(args)+")")
	shot := b.screenshot(t)
	b.stop(t)

	r.looksRight(t)
	for i, uri := range uris {
		r.Whole[i].is(t, uri, http.StatusOK, page.files[uri])
	}
	for i, p := range parts {
		r.Parts[i].is(t, "/video.webm, "+p.header, http.StatusPartialContent, p.want)
	}
	checkScreenshot(t, shot)
	b.hadNoTrouble(t, c.url(0, "/"))

	// What the page needed, and what it fetched once more.
	for range 2 {
		for _, uri := range uris {
			if uri != "/video.webm" {
				c.tookFile(t, uri, int64(len(page.files[uri])))
			}
		}
	}
	upgrades(t, c.tookPage(t))
}

// pageSeeks are the times of the video, in seconds, that the page goes to.
var pageSeeks = []float64{12.5, 3.25, 12.5}

// pageReport is what report of page.js returns.
type pageReport struct {
	Seeks []struct {
		Time    float64
		Picture string
	}
	Played   int // frames
	Duration float64
	Size     [2]int
	Images   []int // their width; 0 if not complete
	Fonts    []string
	Whole    []pageFetch
	Parts    []pageFetch
}

type pageFetch struct {
	Status int
	Size   int64
	Sum    string
}

func (f pageFetch) is(t *testing.T, what string, status int, want []byte) {
	t.Helper()
	if f.Status != status {
		t.Errorf("%s: status %d, want %d", what, f.Status, status)
	}
	checkBody(t, what, f.Size, f.Sum, int64(len(want)), sum(want))
}

// looksRight checks what the page says of itself, but for what it fetched.
func (r *pageReport) looksRight(t *testing.T) {
	t.Helper()
	var widths []int
	for i := range pageImages {
		widths = append(widths, imageWidth(i))
	}
	if !slices.Equal(r.Images, widths) {
		t.Errorf("the images are %v wide, want %v", r.Images, widths)
	}
	if !slices.Equal(r.Fonts, []string{"loaded"}) {
		t.Errorf("fonts: %v", r.Fonts)
	}
	if r.Duration != 15 || r.Size != [2]int{320, 240} {
		t.Errorf("the video lasts %v s and is %v large, want 15 and 320 by 240", r.Duration, r.Size)
	}
	if r.Played == 0 {
		t.Error("the video shows no frame")
	}
	pictures := map[float64]string{}
	for i, s := range r.Seeks {
		if s.Time != pageSeeks[i] {
			t.Errorf("sought to %v s, the video is at %v", pageSeeks[i], s.Time)
		}
		if p := pictures[s.Time]; p != "" && p != s.Picture {
			t.Errorf("at %v s, the video shows now this, now that", s.Time)
		}
		for other, p := range pictures {
			if other != s.Time && p == s.Picture {
				t.Errorf("the video shows the same at %v s and at %v", other, s.Time)
			}
		}
		pictures[s.Time] = s.Picture
	}
}

// hadNoTrouble checks what Chromium has noted of all requests to a site, and
// that there is nothing on the console.
func (b *chromium) hadNoTrouble(t *testing.T, site string) {
	t.Helper()
	for _, e := range b.events {
		p := &e.Params
		switch e.Method {
		case "Log.entryAdded":
			if p.Entry.Level == "error" {
				t.Errorf("Chromium's log: %s %s", p.Entry.Text, p.Entry.URL)
			}
		case "Runtime.consoleAPICalled", "Runtime.exceptionThrown":
			t.Errorf("console: %s", e.raw)
		case "Network.loadingFailed":
			if !p.Canceled { // those of a video that is sought in are
				t.Errorf("not loaded: %s", e.raw)
			}
		case "Network.responseReceived":
			a := &p.Response
			if !strings.HasPrefix(a.URL, site) {
				continue // the icon's data
			}
			if !slices.Contains([]int{http.StatusOK, http.StatusPartialContent, http.StatusNotModified}, a.Status) ||
				a.Protocol != "h2" || a.SecurityState != "secure" || a.SecurityDetails.Protocol != "TLS 1.3" {
				t.Errorf("a response isn't what it should be: %+v", *a)
			}
		}
	}
}

// tookPage checks what the access log says of the video and of the page's
// connections, and returns how many of those were upgraded.
func (c *caddy) tookPage(t *testing.T) (upgraded int) {
	t.Helper()
	if _, ok := c.log.await(0, func(l *line) bool {
		ranges := l.Request.Headers["Range"]
		return l.isAccess() && l.Status == http.StatusPartialContent && l.Size >= minSendfile &&
			len(ranges) == 1 && !strings.HasPrefix(ranges[0], "bytes=0-") && l.Request.Headers.Get("Sec-Fetch-Dest") == "video"
	}); !ok {
		t.Error("the video was not asked for from any place but its beginning")
	}
	connections := map[string]bool{} // by the client's port; whether something went by sendfile
	lines, _, _ := c.log.snapshot()
	for _, l := range lines {
		if !l.isAccess() {
			continue
		}
		port := l.Request.RemotePort
		sent := l.KTLS != nil && l.KTLS.Path == "sendfile"
		connections[port] = connections[port] || sent
		if sent {
			c.upgradeOf(t, l)
		}
		switch {
		case l.Request.URI != "/video.webm" || l.Status == http.StatusNotModified:
		case l.Size == 0: // cancelled before there was anything of it
		case sent && l.KTLS.Reason == "cut": // cancelled, too
		default:
			l.isFile(t, l.Size)
		}
	}
	for _, is := range connections {
		if is {
			upgraded++
		}
	}
	if len(connections) > 3 { // with and without credentials, and one to spare
		t.Errorf("%d connections: %v", len(connections), connections)
	}
	return upgraded
}

// checkScreenshot looks for the style sheet's background and for the noise that
// the images are. As an artifact of the test the screenshot can be looked at.
func checkScreenshot(t *testing.T, shot []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(t.ArtifactDir(), "page.png"), shot, 0o644); err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		t.Fatal(err)
	}
	bounds := img.Bounds()
	colors := map[color.Color]bool{}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			colors[color.NRGBAModel.Convert(img.At(x, y))] = true
		}
	}
	corner := color.NRGBAModel.Convert(img.At(bounds.Min.X, bounds.Min.Y))
	if want := (color.NRGBA{10, 120, 60, 255}); corner != want {
		t.Errorf("the page's background is %v, want %v", corner, want)
	}
	if len(colors) < 10_000 {
		t.Errorf("the screenshot has %d colours; the images aren't there", len(colors))
	}
}

// webPage is a page that is ready to be served.
type webPage struct {
	root  string
	files map[string][]byte // by URI, but for the page itself
}

const pageImages = 50

func makePage(t *testing.T) webPage {
	t.Helper()
	const font = "/usr/share/fonts/truetype/dejavu/DejaVuSansMono-Bold.ttf"
	page := webPage{t.TempDir(), map[string][]byte{}}
	add := func(name string, content []byte, err error) {
		t.Helper()
		if err == nil {
			err = os.WriteFile(filepath.Join(page.root, name), content, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		page.files["/"+name] = content
	}
	copied := func(name, from string) {
		t.Helper()
		content, err := os.ReadFile(from)
		add(name, content, err)
	}
	var images []string
	for i := range pageImages {
		name := fmt.Sprintf("%02d.png", i)
		images = append(images, name)
		content, err := noise(uint64(i), imageWidth(i))
		add(name, content, err)
	}
	copied("style.css", "testdata/page/style.css")
	copied("page.js", "testdata/page/page.js")
	copied("font.ttf", font)
	copied("video.webm", "testdata/video.webm")
	video, err := spreadWebM(page.files["/video.webm"], mib)
	add("video.webm", video, err)

	index, err := template.ParseFiles("testdata/page/index.html")
	if err != nil {
		t.Fatal(err)
	}
	var html bytes.Buffer
	if err := index.Execute(&html, images); err != nil {
		t.Fatal(err)
	}
	add("index.html", html.Bytes(), nil)
	delete(page.files, "/index.html") // Caddy redirects it to /
	return page
}

// imageWidth makes images of 20 KB to 160 KB.
func imageWidth(i int) int { return 84 + 3*i }

// noise is a PNG, square and of random colours, which don't compress.
func noise(seed uint64, width int) ([]byte, error) {
	random := rand.New(rand.NewPCG(seed, 0))
	img := image.NewNRGBA(image.Rect(0, 0, width, width))
	for i := 0; i < len(img.Pix); i += 4 {
		n := random.Uint32()
		copy(img.Pix[i:], []byte{byte(n), byte(n >> 8), byte(n >> 16), 255})
	}
	var b bytes.Buffer
	err := (&png.Encoder{CompressionLevel: png.NoCompression}).Encode(&b, img)
	return b.Bytes(), err
}
