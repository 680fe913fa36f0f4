package freeze

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage/durable"
)

// mark writes down what is about to be frozen.
func mark(marker string, points []string) error {
	text, err := json.Marshal(points)
	if err != nil {
		return fmt.Errorf("encode what is frozen: %w", err)
	}
	return durable.WriteFile(marker, text, 0o600)
}

func unmark(marker string) error {
	if err := os.Remove(marker); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget what was frozen: %w", err)
	}
	return nil
}

// Recover thaws what a marker says was frozen by a process that is gone, and removes the marker. Thawing what is not frozen,
// or not mounted any more, does nothing.
func Recover(ctx context.Context, marker string) error {
	text, err := os.ReadFile(marker)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read what was frozen: %w", err)
	}
	var points []string
	if err := json.Unmarshal(text, &points); err != nil { // it is written whole: someone else wrote this
		klog.FromContext(ctx).Error(err, "Cannot read what was frozen", "path", marker)
	}
	for _, point := range points {
		f, err := os.Open(point)
		if err == nil {
			err = thaw(f)
		}
		if err == nil {
			klog.FromContext(ctx).Info("Thawed a filesystem that a killed process left frozen", "path", point)
		}
	}
	return unmark(marker)
}
