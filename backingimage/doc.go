// Package backingimage holds the vocabulary that every part of Plinth shares: what can go wrong (Kind), said
// once, so that each edge (gRPC, HTTP, exit code) needs only one table.
//
// The packages below it are the life of an image: api (the objects), store (reading and writing them), controller
// (which copies there should be), node (the agent that makes them), fetch (one attempt to make a copy: source →
// format → manifest) and disk (the place where copies live). None of them knows CSI or a volume's engine.
package backingimage
