package agent

// Version of the agent. A frozen VM carries the agent it was frozen with, so this number says what a thawed sandbox can
// do; clients of the process and filesystem services gate features on the same number.
const Version = "0.6.13"
