package controller

// Summarize is summarize, for tests.
var Summarize = summarize
