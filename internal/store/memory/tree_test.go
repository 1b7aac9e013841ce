package memory

import (
	"encoding/base64"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sporevm/spore"
)

// A tree does what a sorted list would, and one that was copied does not see what happens to the other.
func TestTree(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var tree tree[int]
		var model []key
		e := &edit{}
		copied, then := tree, slices.Clone(model)
		for range rapid.IntRange(0, 80).Draw(rt, "steps") {
			k := drawKey(rt)
			at, there := slices.BinarySearchFunc(model, k, key.compare)
			switch rapid.IntRange(0, 9).Draw(rt, "what") {
			case 0:
				copied, then = tree, slices.Clone(model)
				e = &edit{seed: e.seed}
			case 1, 2, 3, 4:
				n := int(k.n)
				tree.put(e, k, &n)
				if !there {
					model = slices.Insert(model, at, k)
				}
			case 5, 6, 7:
				if there {
					tree.drop(e, k)
					model = slices.Delete(model, at, at+1)
				}
			case 8:
				if got := tree.get(k); (got != nil) != there || there && *got != int(k.n) {
					rt.Fatalf("get %v: %v", k, got)
				}
			case 9:
				s := span{from: k, to: drawKey(rt), endless: rapid.Bool().Draw(rt, "endless")}
				var want []int
				for _, k := range model {
					if k.compare(s.from) >= 0 && (s.endless || k.compare(s.to) < 0) {
						want = append(want, int(k.n))
					}
				}
				wantWalk(rt, tree, s, want)
			}
		}
		wantWalk(rt, tree, everything, numbers(model))
		wantWalk(rt, copied, everything, numbers(then))
	})
}

func drawKey(rt *rapid.T) key {
	return key{rapid.SampledFrom([]string{"", "a", "b"}).Draw(rt, "a"), rapid.Int64Range(-2, 5).Draw(rt, "n"), rapid.SampledFrom([]string{"", "x"}).Draw(rt, "b")}
}

func numbers(keys []key) (n []int) {
	for _, k := range keys {
		n = append(n, int(k.n))
	}
	return n
}

func wantWalk(rt *rapid.T, t tree[int], s span, want []int) {
	var up, down []int
	for n := range t.up(s) {
		up = append(up, *n)
	}
	for n := range t.down(s) {
		down = append(down, *n)
	}
	slices.Reverse(down)
	if !slices.Equal(up, want) || !slices.Equal(down, want) {
		rt.Fatalf("up %v, down %v, want %v", up, down, want)
	}
	for n := range t.up(s) { // who stops early is left alone
		if *n != want[0] {
			rt.Fatalf("the first is %d", *n)
		}
		break
	}
}

// Equal histories make equal trees, and trees are shallow.
func TestTreeShape(t *testing.T) {
	build := func() *branch[int] {
		var tree tree[int]
		e := &edit{}
		for n := range 10_000 {
			tree.put(e, key{n: int64(n)}, &n)
		}
		for n := 0; n < 10_000; n += 3 {
			tree.drop(e, key{n: int64(n)})
		}
		return tree.root
	}
	var same func(a, b *branch[int]) bool
	same = func(a, b *branch[int]) bool {
		if a == nil || b == nil {
			return a == b
		}
		return a.key == b.key && same(a.left, b.left) && same(a.right, b.right)
	}
	var depth func(b *branch[int]) int
	depth = func(b *branch[int]) int {
		if b == nil {
			return 0
		}
		return 1 + max(depth(b.left), depth(b.right))
	}
	a := build()
	if !same(a, build()) {
		t.Error("the same history made two trees")
	}
	if d := depth(a); d > 45 {
		t.Errorf("%d deep", d)
	}
}

func FuzzParseToken(f *testing.F) {
	good := position{"templates", key{n: 1234567890123456789, b: "tpl-00ff"}}.token()
	f.Add("templates", good)
	f.Add("replicas", position{"replicas", key{a: "tpl-\"", b: "n\u2028<>"}}.token())
	f.Add("sandboxes", good)
	f.Add("templates", "")
	f.Add("templates", good+"=")
	for _, text := range []string{`["templates","",1,"a"]`, `["templates","",1.0,"a"]`, `["templates","",1]`, `["templates","",1,"a",2]`, `null`, `{}`, `["templates",null,1,"a"]`} {
		f.Add("templates", base64.RawURLEncoding.EncodeToString([]byte(text)))
	}
	f.Fuzz(func(t *testing.T, list, token string) {
		p, err := parseToken(list, token)
		if err != nil {
			if e := spore.AsError(err); e.Code != spore.CodeInvalid || e.Field != "pageToken" {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if p.list != list || p.token() != token {
			t.Fatalf("%q was read as %+v, which is %q", token, p, p.token())
		}
	})
}
