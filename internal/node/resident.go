package node

// SandboxOf answers which sandbox the VM in a directory below vms is of, "" while it is nobody's. It fails with fs.ErrNotExist when
// the directory is none of a VM.
func SandboxOf(dir string) (string, error) {
	o, err := readOwner(dir)
	return o.Sandbox, err
}
