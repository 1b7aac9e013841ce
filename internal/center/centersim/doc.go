// Package centersim tries the center in a world that is only a model: simulated machines, rows in memory, a virtual clock,
// and whatever can go wrong going wrong at the worst moment, all of it decided by one number. The same number gives the
// same run again, so a failure found once can be looked at as often as it takes.
//
// Its tests are the whole package. A world has one server that is alone with its machine, or two controllers that share
// three machines; clients that create, snapshot, fork, roll back, pause, commit, redo and delete, and that ask again when they
// were not answered; and a devil. After each step the rules that hold at every moment are looked at, and at the end, when the devil
// has left and everything has come to rest, those that hold at rest.
package centersim
