package center

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
)

func TestCheckLifeAndLabels(t *testing.T) {
	many := map[string]string{}
	for i := range 2000 {
		many[fmt.Sprint("K", i)] = "v"
	}
	big := map[string]string{"K": strings.Repeat("v", maxEnvBytes)}
	life := func(ttl time.Duration, onEnd spore.EndAction, env map[string]string) error {
		return checkLife(ttl, onEnd, env)
	}
	for name, c := range map[string]struct {
		err   error
		field string // "" is no error
	}{
		"nothing":              {life(0, "", nil), ""},
		"all that there is":    {life(maxTTL, spore.EndPause, map[string]string{"A": "b=c"}), ""},
		"time before now":      {life(-1, "", nil), "ttlSeconds"},
		"too much time":        {life(maxTTL+1, "", nil), "ttlSeconds"},
		"unknown end":          {life(0, "explode", nil), "onEnd"},
		"nameless variable":    {life(0, "", map[string]string{"": "v"}), "env"},
		"equals sign in name":  {life(0, "", map[string]string{"A=B": "v"}), "env"},
		"zero byte in value":   {life(0, "", map[string]string{"A": "secret\x00"}), "env"},
		"too many variables":   {life(0, "", many), "env"},
		"too large variables":  {life(0, "", big), "env"},
		"labels":               {checkLabels(map[string]string{"team": ""}), ""},
		"too many labels":      {checkLabels(many), "labels"},
		"label without a key":  {checkLabels(map[string]string{"": "v"}), "labels"},
		"label that is large":  {checkLabels(map[string]string{"k": strings.Repeat("v", maxLabel+1)}), "labels"},
		"label with large key": {checkLabels(map[string]string{strings.Repeat("k", maxLabel+1): "v"}), "labels"},
	} {
		switch {
		case c.field == "" && c.err != nil:
			t.Errorf("%s: %v", name, c.err)
		case c.field != "" && (spore.CodeOf(c.err) != spore.CodeInvalid || spore.AsError(c.err).Field != c.field):
			t.Errorf("%s: %v", name, c.err)
		case c.err != nil && strings.Contains(c.err.Error(), "secret"):
			t.Errorf("%s: the value is in the message: %v", name, c.err)
		}
	}
}

func TestKeyedMutex(t *testing.T) {
	var k keyedMutex
	unlock, err := k.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := k.tryLock("a"); ok {
		t.Error("one key was locked twice")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.lock(ended, "a"); spore.CodeOf(err) != spore.CodeBusy {
		t.Errorf("whoever gives up waiting is told %v", err)
	}
	other, ok := k.tryLock("b")
	if !ok {
		t.Fatal("one key keeps another locked")
	}
	other()
	unlock()
	if len(k.locks) != 0 || len(k.users) != 0 {
		t.Errorf("%v, %v are left", k.locks, k.users)
	}
}
