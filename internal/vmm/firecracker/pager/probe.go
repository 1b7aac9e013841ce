package pager

const probeArg = "probe"

func probeMain() int { return 0 }
