package agent
func (g *Guest) SetAddress(a Address) error { return nil }
func (g *Guest) DropConnections() (int, error) { return 0, nil }
type watchers struct{}
