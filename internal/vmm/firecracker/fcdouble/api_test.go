package fcdouble_test

import "testing"

func readAPI(t testing.TB) any { return nil }
