package doctor

import (
	"errors"
	"io/fs"
	"net"
	"reflect"
	"testing"
	"testing/fstest"

	"github.com/caddy-ktls/caddy-ktls/ktls"
)

func file(content string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(content)} }

func TestExamineModule(t *testing.T) {
	listed := "nf_tables 1 0 - Live 0x0\ntls 151552 0 - Live 0x0\n"
	with, without := &ktls.Features{ULP: yes()}, &ktls.Features{ULP: no("ENOENT", "")}
	for _, tc := range []struct {
		name   string
		root   fstest.MapFS
		before bool
		f      *ktls.Features
		want   Module
	}{
		{"loaded", fstest.MapFS{"proc/modules": file(listed)}, true, with, Module{State: ModuleLoaded}},
		{"loaded by the probe", fstest.MapFS{"proc/modules": file(listed)}, false, with, Module{State: ModuleLoadedNow}},
		{"built in", fstest.MapFS{"proc/modules": file("tls_other 1 0\n")}, false, with, Module{State: ModuleBuiltIn}},
		{"no modules", fstest.MapFS{}, false, with, Module{State: ModuleBuiltIn}},
		{"not loaded", fstest.MapFS{}, false, without, Module{State: ModuleNotLoaded}},
		{"not known", fstest.MapFS{}, false, &ktls.Features{}, Module{State: ModuleUnknown}},
		{"at boot", fstest.MapFS{
			"proc/modules":                     file(listed),
			"etc/modules":                      file("# tls\nloop\n"),
			"etc/modules-load.d/a.conf":        file("#tls\ntls_other\n"),
			"usr/lib/modules-load.d/web.conf":  file("; for the server\nbr_netfilter\n tls \n"),
			"usr/lib/modules-load.d/notes.txt": file("tls\n"),
		}, true, with, Module{ModuleLoaded, "/usr/lib/modules-load.d/web.conf"}},
		{"at boot, old style", fstest.MapFS{"proc/modules": file(listed), "etc/modules": file("tls\n")}, true, with,
			Module{ModuleLoaded, "/etc/modules"}},
	} {
		if got := examineModule(tc.root, tc.before, tc.f); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

func TestReadSysctls(t *testing.T) {
	r := &Report{Sysctls: readSysctls(fstest.MapFS{
		"proc/sys/net/ipv4/tcp_notsent_lowat":   file("16384\n"),
		"proc/sys/net/ipv4/tcp_available_ulp":   file("mptcp tls\n"),
		"proc/sys/net/ipv4/tcp_congestion_here": file("x"),
	})}
	want := []Sysctl{
		{Name: sysctlNotsentLowat, Value: "16384"},
		{Name: sysctlULP, Value: "mptcp tls"},
		{Name: sysctlNoModules, Error: "open /proc/sys/kernel/modules_disabled: file does not exist"},
	}
	if !reflect.DeepEqual(r.Sysctls, want) {
		t.Errorf("%+v", r.Sysctls)
	}
	for value, low := range map[string]bool{"0": true, "16384": true, "131071": true, "131072": false, "4294967295": false, "": false} {
		if s := (Sysctl{Value: value}); s.low() != low {
			t.Errorf("%s: low is %v", value, !low)
		}
	}
}

func TestReadCounters(t *testing.T) {
	c := readCounters(fstest.MapFS{"proc/net/tls_stat": file(
		"TlsCurrTxSw                     \t2\nTlsTxDevice                     \t18446744073709551615\nnonsense\nTlsOdd \t-1\n")})
	want := Counters{Values: map[string]uint64{"TlsCurrTxSw": 2, "TlsTxDevice": 18446744073709551615}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v", c)
	}
	for _, root := range []fstest.MapFS{{}, {"proc/net/tls_stat": file("")}} {
		if c := readCounters(root); c.Error == "" || c.Values != nil {
			t.Errorf("%+v", c)
		}
	}
}

// fakeAsker answers for interfaces by their number.
type fakeAsker map[int]func() (map[string]bool, error)

func (a fakeAsker) Features(index int) (map[string]bool, error) { return a[index]() }
func (a fakeAsker) Close() error                                { return nil }

func noInterfaces() ([]net.Interface, error) { return nil, errors.New("no netlink") }

func TestReadInterfaces(t *testing.T) {
	root := fstest.MapFS{
		"sys/class/net/eth0/device/driver": {Data: []byte("../../../bus/pci/drivers/mlx5_core"), Mode: fs.ModeSymlink},
	}
	list := func() ([]net.Interface, error) {
		return []net.Interface{{Index: 1, Name: "lo"}, {Index: 2, Name: "eth0"}, {Index: 3, Name: "gone"}, {Index: 4, Name: "odd"}}, nil
	}
	open := func() (featureAsker, error) {
		return fakeAsker{
			1: func() (map[string]bool, error) { return map[string]bool{"highdma": true}, nil },
			2: func() (map[string]bool, error) { return map[string]bool{featureTX: true, featureRX: false}, nil },
			3: func() (map[string]bool, error) { return nil, errGone },
			4: func() (map[string]bool, error) { return nil, errors.New("strange") },
		}, nil
	}
	want := Interfaces{List: []Interface{
		{Name: "lo", TX: OffloadNone, RX: OffloadNone, Record: OffloadNone},
		{Name: "eth0", Driver: "mlx5_core", TX: OffloadOn, RX: OffloadOff, Record: OffloadNone},
		{Name: "odd", TX: OffloadUnknown, RX: OffloadUnknown, Record: OffloadUnknown, Error: "strange"},
	}}
	if got := readInterfaces(root, list, open); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}

	fails := func() (featureAsker, error) { return nil, errors.New("no ethtool") }
	got := readInterfaces(root, list, fails)
	if got.Error != "no ethtool" || len(got.List) != 4 || got.List[1].TX != OffloadUnknown || got.List[1].Driver != "mlx5_core" {
		t.Errorf("without ethtool: %+v", got)
	}
	if got := readInterfaces(root, noInterfaces, open); got.Error != "no netlink" || len(got.List) != 0 {
		t.Errorf("without a list: %+v", got)
	}
}
