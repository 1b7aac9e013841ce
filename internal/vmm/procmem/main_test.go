package procmem

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("PROCMEM_CHILD"); path != "" {
		if err := serveChild(path); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serveChild plays the hypervisor: it maps a file and obeys commands of the form "VERB OFFSET LENGTH [BYTE]".
func serveChild(path string) error {
	flags := unix.MAP_PRIVATE
	if os.Getenv("PROCMEM_SHARED") != "" {
		flags = unix.MAP_SHARED
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	ram, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var verb string
		var off, length int
		var b byte
		if _, err := fmt.Sscan(in.Text(), &verb, &off, &length, &b); err != nil {
			return fmt.Errorf("%q: %w", in.Text(), err)
		}
		part := ram[off : off+length]
		switch verb {
		case "fill":
			for i := range part {
				part[i] = b
			}
		case "read":
			sum := 0
			for _, c := range part {
				sum += int(c)
			}
			fmt.Print(sum, " ")
		case "pageout":
			err = unix.Madvise(part, unix.MADV_PAGEOUT)
		case "drop":
			err = unix.Madvise(part, unix.MADV_DONTNEED)
		case "protect": // splits the mapping in the kernel's table
			err = unix.Madvise(part, unix.MADV_DONTFORK)
		default:
			err = fmt.Errorf("unknown verb %q", verb)
		}
		if err != nil {
			return err
		}
		fmt.Println("ok")
	}
	return in.Err()
}

type child struct {
	t   *testing.T
	pid int
	in  io.WriteCloser
	out *bufio.Scanner
	end func()
}

func startChild(t *testing.T, path string, env ...string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "PROCMEM_CHILD="+path), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, pid: cmd.Process.Pid, in: in, out: bufio.NewScanner(out)}
	ended := false
	c.end = func() {
		if !ended {
			ended = true
			in.Close()
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	t.Cleanup(c.end)
	if !c.out.Scan() || c.out.Text() != "ready" {
		t.Fatalf("child did not start: %q", c.out.Text())
	}
	return c
}

func (c *child) do(format string, args ...any) string {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.in, format+"\n", args...); err != nil {
		c.t.Fatal(err)
	}
	if !c.out.Scan() {
		c.t.Fatalf("child ended at "+format, args...)
	}
	return strings.TrimSpace(strings.TrimSuffix(c.out.Text(), "ok"))
}
