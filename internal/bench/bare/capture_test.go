package bare

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPlain(t *testing.T) {
	got, err := plain([]string{
		"-readconfig", "/proc/self/fd/7", "-name", "guest=v1", "-nodefaults", "-S", "-m", "256M",
		"-object", "memory-backend-file,id=ram,size=256M,mem-path=memory,share=off",
		"-chroot", ".", "-runas", "1:1", "-run-with", "chroot=.", "-sandbox", "on,spawn=deny",
		"-incoming", "defer",
		"-chardev", "socket,id=qmp,fd=3,server=on,wait=off",
		"-mon", "chardev=qmp,mode=control",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"-nodefaults", "-S", "-m", "256M",
		"-chardev", "socket,id=qmp,path=qmp.sock,server=on,wait=off",
		"-mon", "chardev=qmp,mode=control",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := plain([]string{"-chardev", "socket,fd=3"}); err == nil {
		t.Error("a character device without an id was accepted")
	}
	if got, err := plain([]string{"-incoming"}); err != nil || len(got) != 0 {
		t.Errorf("a last option without its value: %v, %v", got, err)
	}
}
