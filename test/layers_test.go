// Package test holds what belongs to no folder alone: the rules that keep the folders apart, and the demo, end-to-end and
// benchmark programs below it.
package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "plinth.dev/plinth/"

// layers says, for each folder of the tree, which other folders of the tree its packages may import; the longest prefix
// that fits a package decides. `csi` speaks the protocol and asks `provisioner` for volumes; `provisioner` makes them
// from `backingimage`s; `cmd` wires; nothing points back.
var layers = map[string][]string{
	"backingimage":       {"backingimage"},
	"provisioner":        {"provisioner", "backingimage"},
	"provisioner/engine": {"provisioner/engine", "backingimage"},
	"csi":                {"csi", "provisioner", "backingimage"},
	"cmd":                {"cmd", "csi", "provisioner", "backingimage", "deploy"}, // deploy embeds the CRDs
	"test":               {"test", "csi", "provisioner", "backingimage", "deploy"},
	"deploy":             {},
}

// restricted names packages that only a few folders may import, tests anywhere excepted.
var restricted = []struct {
	imported string
	by       []string
	why      string
}{
	{"github.com/container-storage-interface/spec/", []string{"csi", "cmd/plinth"}, "only the protocol layer speaks CSI; cmd/plinth is its client"},
	{module + "backingimage/store/embedded", []string{"cmd/plinth-standalone"}, "only standalone brings an API server along: everything else must work with any, and not pay for linking one"},
	{module + "provisioner/backup/object/gcs", []string{"cmd/plinth-buckets"}, "the drivers of the public clouds are dear to link: only the program that is started for them does"},
	{module + "provisioner/backup/object/azure", []string{"cmd/plinth-buckets"}, "the drivers of the public clouds are dear to link: only the program that is started for them does"},
	{"cloud.google.com/", []string{"provisioner/backup/object/gcs"}, "one driver speaks to Google's cloud"},
	{"gocloud.dev/blob/gcsblob", []string{"provisioner/backup/object/gcs"}, "one driver speaks to Google's cloud"},
	{"github.com/Azure/", []string{"provisioner/backup/object/azure"}, "one driver speaks to Azure's cloud"},
	{"gocloud.dev/blob/azureblob", []string{"provisioner/backup/object/azure"}, "one driver speaks to Azure's cloud"},
	{module + "provisioner/engine/reflink", []string{"cmd"}, "an engine's users know the contract, not the engine; cmd chooses"},
	{"k8s.io/apiserver/", []string{"backingimage/store/embedded"}, "the API server is embedded in one place"},
	{"k8s.io/apiextensions-apiserver/", []string{"backingimage/store/embedded"}, "the API server is embedded in one place"},
}

// topLevel is everything that may stand at the top of the tree, dotfiles apart.
var topLevel = []string{
	"backingimage", "bin", "cmd", "csi", "deploy", "docs", "provisioner", "test",
	"go.mod", "go.sum", "LICENSE", "Makefile", "README.md",
}

// vagueNames say nothing about what a package is for.
var vagueNames = []string{"util", "utils", "common", "helper", "helpers", "types", "manager", "misc", "shared"}

// maxFunctionLines is where a function holds two thoughts.
const maxFunctionLines = 100

func TestLayersPointOneWay(t *testing.T) {
	for _, f := range mustParseTree(t) {
		for _, imported := range f.imports {
			if inside, ok := strings.CutPrefix(imported, module); ok && !f.test && !fitsAny(inside, allowed(f.folder)) {
				t.Errorf("%s imports %s: %s may import only %v", f.path, inside, f.folder, allowed(f.folder))
			}
			for _, r := range restricted {
				if strings.HasPrefix(imported, r.imported) && !f.test && !fitsAny(f.folder, append(r.by, "test")) {
					t.Errorf("%s imports %s: %s", f.path, imported, r.why)
				}
			}
		}
	}
}

func TestTopLevelIsFixed(t *testing.T) {
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(topLevel, e.Name()) {
			t.Errorf("%s stands at the top of the tree: only %v may", e.Name(), topLevel)
		}
	}
}

func TestSizeOfFunctionsIsBounded(t *testing.T) {
	for _, f := range mustParseTree(t) {
		if f.generated || f.test { // a test may be a long list of sub-tests
			continue
		}
		for name, lines := range f.functions {
			if lines > maxFunctionLines {
				t.Errorf("%s: %s has %d lines: a function of more than %d holds two thoughts", f.path, name, lines, maxFunctionLines)
			}
		}
	}
}

func TestNamesOfPackagesSaySomething(t *testing.T) {
	for _, f := range mustParseTree(t) {
		if slices.Contains(vagueNames, strings.TrimSuffix(f.pkg, "_test")) {
			t.Errorf("%s: package %s says nothing about what it is for", f.path, f.pkg)
		}
	}
}

// goFile is what the rules need of a source file.
type goFile struct {
	path, folder, pkg string
	test, generated   bool // test: a test, or a package for tests, whose name ends so
	imports           []string
	functions         map[string]int // lines of each, by name
}

func mustParseTree(tb testing.TB) []goFile {
	tb.Helper()
	var files []goFile
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != ".." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".go" {
			return nil
		}
		f, err := parseFile(path)
		files = append(files, f)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	if len(files) < 20 {
		tb.Fatalf("found %d Go files: the rules would hold of nothing", len(files))
	}
	return files
}

func parseFile(path string) (goFile, error) {
	fset := token.NewFileSet()
	syntax, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return goFile{}, err
	}
	relative := strings.TrimPrefix(filepath.ToSlash(path), "../")
	f := goFile{
		path:      relative,
		folder:    filepath.ToSlash(filepath.Dir(relative)),
		pkg:       syntax.Name.Name,
		test:      strings.HasSuffix(path, "_test.go") || strings.HasSuffix(filepath.Dir(path), "test"),
		generated: ast.IsGenerated(syntax),
		functions: map[string]int{},
	}
	for _, i := range syntax.Imports {
		imported, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			return goFile{}, err
		}
		f.imports = append(f.imports, imported)
	}
	for _, d := range syntax.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok {
			f.functions[fn.Name.Name] = fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1
		}
	}
	return f, nil
}

// allowed returns the rule of the longest prefix in layers that fits folder.
func allowed(folder string) []string {
	best, rule := "", []string(nil)
	for prefix, imports := range layers {
		if fits(folder, prefix) && len(prefix) > len(best) {
			best, rule = prefix, imports
		}
	}
	return rule
}

func fits(folder, prefix string) bool {
	return folder == prefix || strings.HasPrefix(folder, prefix+"/")
}

func fitsAny(folder string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return fits(folder, p) })
}
