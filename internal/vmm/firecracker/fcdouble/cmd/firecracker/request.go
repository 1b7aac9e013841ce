package main

import (
	"fmt"
	"net/http"
	"strings"
	"unicode"
)

// reply is the answer to a request: no body, a JSON value, or a fault.
type reply struct {
	body       any
	fault      string
	deprecated bool
	dirty      bool // the process must not live on
}

func faulted(format string, args ...any) reply { return reply{fault: fmt.Sprintf(format, args...)} }

// call is a request that has been understood.
type call func(m *machine) reply

// route finds what a request asks for.
func (s *server) route(method, path string, body []byte) (call, error) {
	words := strings.Split(strings.TrimSuffix(strings.TrimLeft(path, "/"), "/"), "/")
	first, rest := words[0], append(words[1:], "")
	hasBody := len(body) > 0
	invalid := &badRequest{fmt.Sprintf("Invalid request method and/or path: %s %s.", method, first)}
	switch method {
	case http.MethodGet:
		if hasBody {
			return nil, &badRequest{"GET request cannot have a body."}
		}
		switch {
		case first == "":
			return (*machine).describe, nil
		case first == "version":
			return (*machine).showVersion, nil
		case first == "machine-config":
			return (*machine).showMachine, nil
		case first == "vm" && rest[0] == "config":
			return (*machine).showConfig, nil
		case first == "balloon" && rest[0] == "":
			return (*machine).showBalloon, nil
		case first == "balloon" && rest[0] == "statistics":
			return (*machine).showBalloonStats, nil
		case first == "mmds":
			return (*machine).showMetadata, nil
		}
	case http.MethodPut:
		return s.routePut(first, rest, body, invalid)
	case http.MethodPatch:
		return s.routePatch(first, rest, body, invalid)
	case http.MethodDelete:
		if hasBody {
			return nil, &badRequest{"Empty Delete request."}
		}
		if first == "drives" || first == "network-interfaces" || first == "pmem" {
			if err := checkID(rest[0]); err != nil {
				return nil, err
			}
			return (*machine).unplug, nil
		}
	}
	return nil, invalid
}

// parsed makes a call of a body.
func parsed[T any](body []byte, check func([]byte, *T) error, do func(*machine, T) reply) (call, error) {
	var v T
	if err := check(body, &v); err != nil {
		return nil, err
	}
	return func(m *machine) reply { return do(m, v) }, nil
}

func (s *server) routePut(first string, rest []string, body []byte, invalid error) (call, error) {
	if len(body) == 0 {
		return nil, &badRequest{"Empty PUT request."}
	}
	sh := s.shapes
	switch first {
	case "actions":
		return parsed(body, func(b []byte, v *struct {
			Type string `json:"action_type"`
		}) error {
			return decode(sh.action, b, v)
		}, func(m *machine, v struct {
			Type string `json:"action_type"`
		}) reply {
			return m.action(v.Type)
		})
	case "boot-source":
		return parsed(body, func(b []byte, v *bootSource) error { return decode(sh.boot, b, v) }, (*machine).setBoot)
	case "machine-config":
		return parsed(body, func(b []byte, v *machineUpdate) error { return decode(sh.machine, b, v) }, (*machine).putMachine)
	case "drives":
		if err := checkID(rest[0]); err != nil {
			return nil, err
		}
		return parsed(body, func(b []byte, v *driveConfig) error {
			if err := decode(sh.drive, b, v); err != nil {
				return err
			}
			return sameID(rest[0], v.ID)
		}, (*machine).putDrive)
	case "network-interfaces":
		if err := checkID(rest[0]); err != nil {
			return nil, err
		}
		return parsed(body, func(b []byte, v *netConfig) error {
			if err := decode(sh.net, b, v); err != nil {
				return err
			}
			return sameNetID(rest[0], v.ID)
		}, (*machine).putNet)
	case "vsock":
		return parsed(body, func(b []byte, v *vsockConfig) error { return decode(sh.vsock, b, v) }, (*machine).putVsock)
	case "entropy":
		return parsed(body, func(b []byte, v *entropyConfig) error { return decode(sh.entropy, b, v) }, (*machine).putEntropy)
	case "balloon":
		return parsed(body, func(b []byte, v *balloonConfig) error { return decode(sh.balloon, b, v) }, (*machine).putBalloon)
	case "logger":
		return parsed(body, func(b []byte, v *logParams) error { return decode(sh.logger, b, v) }, (*machine).putLogger)
	case "metrics":
		return parsed(body, func(b []byte, v *map[string]any) error { return decode(sh.metrics, b, v) }, (*machine).putMetrics)
	case "serial":
		if s.rel.since(14) {
			return parsed(body, func(b []byte, v *serialConfig) error { return decode(sh.serial, b, v) }, (*machine).putSerial)
		}
	case "snapshot":
		switch rest[0] {
		case "create":
			return parsed(body, func(b []byte, v *createParams) error { return decode(sh.create, b, v) }, (*machine).createSnapshot)
		case "load":
			return parsed(body, func(b []byte, v *loadParams) error { return s.decodeLoad(b, v) }, (*machine).loadSnapshot)
		case "":
			return nil, &badRequest{"Missing snapshot operation type."}
		}
		return nil, &badRequest{fmt.Sprintf("Invalid request method and/or path: PUT /snapshot/%s.", rest[0])}
	}
	return nil, invalid
}

func (s *server) decodeLoad(body []byte, v *loadParams) error {
	if err := decode(s.shapes.load, body, v); err != nil {
		return err
	}
	const prefix = "An error occurred when deserializing the json body of a request: "
	switch {
	case v.Backend != nil && v.Memory != nil:
		return &badRequest{prefix + "too many fields: either `mem_backend` or `mem_file_path` exclusively is required."}
	case v.Backend == nil && v.Memory == nil:
		return &badRequest{prefix + "missing field: either `mem_backend` or `mem_file_path` is required."}
	}
	return nil
}

func (s *server) routePatch(first string, rest []string, body []byte, invalid error) (call, error) {
	if len(body) == 0 {
		return nil, &badRequest{"Empty PATCH request."}
	}
	sh := s.shapes
	switch first {
	case "vm":
		return parsed(body, func(b []byte, v *struct{ State string }) error { return decode(sh.vm, b, v) },
			func(m *machine, v struct{ State string }) reply { return m.setState(v.State) })
	case "machine-config":
		return parsed(body, func(b []byte, v *machineUpdate) error {
			if err := decode(sh.machineUpdate, b, v); err != nil {
				return err
			}
			if *v == (machineUpdate{}) {
				return &badRequest{"Empty PATCH request."}
			}
			return nil
		}, (*machine).patchMachine)
	case "drives":
		if err := checkID(rest[0]); err != nil {
			return nil, err
		}
		return parsed(body, func(b []byte, v *driveUpdate) error {
			if err := decode(sh.driveUpdate, b, v); err != nil {
				return err
			}
			return sameID(rest[0], v.ID)
		}, (*machine).patchDrive)
	case "network-interfaces":
		if err := checkID(rest[0]); err != nil {
			return nil, err
		}
		return parsed(body, func(b []byte, v *netConfig) error {
			if err := decode(sh.netUpdate, b, v); err != nil {
				return err
			}
			return sameNetID(rest[0], v.ID)
		}, (*machine).patchNet)
	case "balloon":
		if rest[0] == "statistics" {
			return parsed(body, func(b []byte, v *balloonConfig) error { return decode(sh.balloonStats, b, v) }, (*machine).patchBalloonStats)
		}
		return parsed(body, func(b []byte, v *balloonConfig) error { return decode(sh.balloonUpdate, b, v) }, (*machine).patchBalloon)
	}
	return nil, invalid
}

func checkID(id string) error {
	if id == "" {
		return &badRequest{"The ID cannot be empty."}
	}
	for _, c := range id {
		if c != '_' && !unicode.IsLetter(c) && !unicode.IsNumber(c) {
			return &badRequest{"API Resource IDs can only contain alphanumeric characters and underscores."}
		}
	}
	return nil
}

func sameID(path, body string) error {
	if path != body {
		return &badRequest{"The id from the path does not match the id from the body!"}
	}
	return nil
}

func sameNetID(path, body string) error {
	if path != body {
		return &badRequest{fmt.Sprintf("The id from the path [%s] does not match the id from the body [%s]!", path, body)}
	}
	return nil
}
