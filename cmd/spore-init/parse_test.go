package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseCmdline(t *testing.T) {
	for line, want := range map[string]string{
		"":                                      haltPoweroff,
		"console=ttyS0 quiet panic=-1\n":        haltPoweroff,
		"spore.halt=reboot":                     haltReboot,
		`x="a spore.halt=reboot b" quiet`:       haltPoweroff,
		`"spore.halt=reboot"`:                   haltReboot,
		"-- spore.halt=reboot":                  haltPoweroff,
		"sporex.halt=reboot aspore.halt=reboot": haltPoweroff,
	} {
		o, err := parseCmdline(line)
		if err != nil || o.halt != want {
			t.Errorf("%q: %+v, %v", line, o, err)
		}
	}
	for _, line := range []string{"spore.halt", "spore.halt=never", "spore.nonsense=1", "spore."} {
		if o, err := parseCmdline(line); err == nil {
			t.Errorf("%q: %+v", line, o)
		}
	}
}

func TestDrivesInOrder(t *testing.T) {
	o, err := parseCmdline("quiet spore.drives=rootfs,disk,data")
	if err != nil || !slices.Equal(o.drives, []string{"rootfs", "disk", "data"}) {
		t.Fatalf("%+v, %v", o, err)
	}
	found := inOrder(o.drives)
	if len(found) != 3 || found["rootfs"] != "/dev/vda" || found["data"] != "/dev/vdc" {
		t.Error(found)
	}
	for _, line := range []string{"spore.drives", "spore.drives=", "spore.drives=a,,b"} {
		if o, err := parseCmdline(line); err == nil {
			t.Errorf("%q: %+v", line, o)
		}
	}
}

func FuzzParseCmdline(f *testing.F) {
	f.Add(`console=ttyS0 spore.halt="reboot" x="a b" --`)
	f.Add(`"""" = spore.`)
	f.Fuzz(func(t *testing.T, line string) {
		o, err := parseCmdline(line)
		if err == nil && o.halt != haltPoweroff && o.halt != haltReboot {
			t.Fatalf("%q: %+v", line, o)
		}
		for _, w := range splitCmdline(line) {
			if strings.Contains(w, `"`) {
				t.Fatalf("%q: word %q", line, w)
			}
		}
	})
}

func FuzzParseOrder(f *testing.F) {
	f.Add("a.ko\n# no\n\n/lib/b.ko\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, p := range parseOrder(text, "/modules") {
			if !filepath.IsAbs(p) {
				t.Fatalf("%q", p)
			}
		}
	})
}

func TestParseOrder(t *testing.T) {
	got := parseOrder("a.ko\n# comment\n\n  /lib/b.ko\r\n", "/modules")
	if !slices.Equal(got, []string{"/modules/a.ko", "/lib/b.ko"}) {
		t.Fatal(got)
	}
}

func FuzzLivesInUserSpace(f *testing.F) {
	f.Add("12 (a) b) S 1 12 12 0")
	f.Add("")
	f.Fuzz(func(t *testing.T, stat string) { livesInUserSpace(stat) })
}

func TestLivesInUserSpace(t *testing.T) {
	for stat, want := range map[string]bool{
		"12 (sh) S 1 12":         true,
		"12 (od) Z 2) R 1 12":    true,
		"12 (kworker/0:1) I 2 0": false,
		"12 (gone) Z 1 12":       false,
		"12":                     false,
	} {
		if livesInUserSpace(stat) != want {
			t.Errorf("%q: %v", stat, !want)
		}
	}
}

func TestScanDrives(t *testing.T) {
	dir := t.TempDir()
	for dev, serial := range map[string]string{"vda": "rootfs\n", "vdb": "disk", "loop0": "rootfs"} {
		if err := os.MkdirAll(filepath.Join(dir, dev), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, dev, "serial"), []byte(serial), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	found, any, err := scanDrives(dir)
	if err != nil || !any || len(found) != 2 || found["rootfs"] != "/dev/vda" || found["disk"] != "/dev/vdb" {
		t.Fatal(found, any, err)
	}
}

func TestDirectory(t *testing.T) {
	root := t.TempDir()
	if err := os.Symlink("/etc", filepath.Join(root, "run")); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/run", "/tmp"} {
		path, err := directory(root, dir)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Lstat(path); err != nil || !info.IsDir() {
			t.Fatal(info, err)
		}
	}
}
