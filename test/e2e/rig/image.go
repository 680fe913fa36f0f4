package rig

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Image is an image for containers: a name, its layers, the lowest first, and what runs.
type Image struct {
	Name       string
	Layers     []*Layer
	Entrypoint []string
}

// Layer is a tar archive of files.
type Layer struct {
	path   string
	digest string
}

// Contents of a layer: for each path in it a file of the host, "@target" for a symbolic link, or "" for a directory.
type Contents map[string]string

// WriteLayer writes a layer to a file. Directories above the contents are made.
func WriteLayer(file string, contents Contents) (*Layer, error) {
	out, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	sum := sha256.New()
	w := layerWriter{tar: tar.NewWriter(io.MultiWriter(out, sum)), made: map[string]bool{}}
	var names []string
	for name := range contents {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := w.add(strings.TrimPrefix(name, "/"), contents[name]); err != nil {
			return nil, fmt.Errorf("layer %s: %s: %w", file, name, err)
		}
	}
	if err := errors.Join(w.tar.Close(), out.Close()); err != nil {
		return nil, err
	}
	return &Layer{path: file, digest: fmt.Sprintf("sha256:%x", sum.Sum(nil))}, nil
}

type layerWriter struct {
	tar  *tar.Writer
	made map[string]bool // directories
}

func (w layerWriter) directory(name string) error {
	if name == "." || name == "/" || w.made[name] {
		return nil
	}
	if err := w.directory(path.Dir(name)); err != nil {
		return err
	}
	w.made[name] = true
	mode := int64(0o755)
	if path.Base(name) == "tmp" {
		mode = 0o1777
	}
	return w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode})
}

func (w layerWriter) add(name, source string) error {
	if source == "" {
		return w.directory(name)
	}
	if err := w.directory(path.Dir(name)); err != nil {
		return err
	}
	if target, ok := strings.CutPrefix(source, "@"); ok {
		return w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777})
	}
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.tar.WriteHeader(&tar.Header{Name: name, Mode: int64(info.Mode().Perm()), Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(w.tar, f)
	return err
}

// WriteArchive writes images to a file that container runtimes import. Layers that images share are in it once.
func WriteArchive(file string, images []Image) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	w := tar.NewWriter(out)
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var manifest []entry
	written := map[string]bool{}
	for _, i := range images {
		config := i.config()
		e := entry{Config: fmt.Sprintf("%x.json", sha256.Sum256(config)), RepoTags: []string{i.Name}}
		for _, l := range i.Layers {
			name := strings.TrimPrefix(l.digest, "sha256:") + ".tar"
			e.Layers = append(e.Layers, name)
			if !written[name] {
				if err := (layerWriter{tar: w, made: map[string]bool{}}).add(name, l.path); err != nil {
					return err
				}
				written[name] = true
			}
		}
		manifest = append(manifest, e)
		if !written[e.Config] {
			if err := writeEntry(w, e.Config, config); err != nil {
				return err
			}
			written[e.Config] = true
		}
	}
	text, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	return errors.Join(writeEntry(w, "manifest.json", text), w.Close(), out.Close())
}

func writeEntry(w *tar.Writer, name string, text []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
		return err
	}
	_, err := w.Write(text)
	return err
}

func (i Image) config() []byte {
	var digests []string
	for _, l := range i.Layers {
		digests = append(digests, l.digest)
	}
	text, err := json.Marshal(map[string]any{
		"architecture": architecture(), "os": "linux",
		"config": map[string]any{"Entrypoint": i.Entrypoint, "Env": []string{"PATH=" + nodePath}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": digests},
	})
	if err != nil {
		panic(err) // strings are marshalled
	}
	return text
}

// ProgramImages are images of one program each, whose layer they share. names has the program of each image's name.
func ProgramImages(directory string, programs Programs, names map[string]string) ([]Image, error) {
	contents := Contents{"/tmp": "", "/etc": "", "/proc": "", "/sys": "", "/dev": "", "/var/run": ""}
	var images []Image
	for name, program := range names {
		contents["/"+program] = programs.Path(program)
		images = append(images, Image{Name: name, Entrypoint: []string{"/" + program}})
	}
	layer, err := WriteLayer(filepath.Join(directory, "programs.tar"), contents)
	for i := range images {
		images[i].Layers = []*Layer{layer}
	}
	return images, err
}
