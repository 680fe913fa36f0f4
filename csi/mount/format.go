package mount

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/command"
)

// leastXFS is the least size that mkfs.xfs accepts since xfsprogs 5.19, in bytes.
const leastXFS = 300 << 20

// mkfs is how one kind of filesystem is made.
type mkfs struct {
	program  string
	defaults []string
	// Options that a class may give: letters that take a value, and letters that take none. Left out are those that
	// name a file or device of the host (mkfs.ext4 -d copies a directory of it) and those that make nothing (-n).
	valued, plain string
}

var mkfsOf = map[string]mkfs{
	Ext4: {program: "mkfs.ext4", defaults: []string{"-q", "-F", "-m", "0"}, valued: "bCEgGiIJLmMNOorTUe", plain: "cjKqv"},
	// Sectors of 4096 mount on devices of either sector; those of 512 would keep a later clone of the volume from direct I/O.
	XFS: {program: "mkfs.xfs", defaults: []string{"-q", "-f", "-s", "size=4096"}, valued: "bdilmnsL", plain: "Kqf"},
}

// refusedSuboptions of mkfs name files or devices of the host.
var refusedSuboptions = []string{"device", "name", "file", "logdev", "rtdev", "options"}

// Format makes a filesystem on a device, whatever is on it. parameters are further arguments of mkfs, quoted as for a
// shell; they come after Plinth's own and so outrank them. Invalid when they are not ones that a class may give,
// OutOfRange when the device is too small.
func Format(ctx context.Context, d Device, fsType, parameters string) error {
	maker, ok := mkfsOf[fsType]
	if !ok {
		return backingimage.Errorf(backingimage.Invalid, "filesystem %q: Plinth makes ext4 and xfs", fsType)
	}
	extra, err := splitArguments(parameters)
	if err == nil {
		err = maker.check(extra)
	}
	if err != nil {
		return backingimage.Errorf(backingimage.Invalid, "mkfsParams %q: %w", parameters, err)
	}
	if fsType == XFS && d.Bytes < leastXFS {
		return backingimage.Errorf(backingimage.OutOfRange, "format %s: an XFS needs at least %d bytes and the volume has %d; make the volume larger or use ext4", d.Path, leastXFS, d.Bytes)
	}
	args := append(append(slices.Clone(maker.defaults), extra...), d.Path)
	if _, err := command.Run(ctx, maker.program, args...); err != nil {
		return fmt.Errorf("format %s: %w", d.Path, err)
	}
	return nil
}

// check reads arguments as getopt does: -Kq is two letters, -b4096 and -b 4096 are one with its value.
func (m mkfs) check(args []string) error {
	for i := 0; i < len(args); i++ {
		letters, isOption := strings.CutPrefix(args[i], "-")
		if !isOption || letters == "" || letters[0] == '-' {
			return fmt.Errorf("%q is no option of %s; only options with one dash are passed on", args[i], m.program)
		}
		value, err := m.valueOf(letters)
		if err != nil {
			return err
		}
		if value == needsNext {
			if i++; i == len(args) {
				return fmt.Errorf("option %q of %s needs a value", args[i-1], m.program)
			}
			value = args[i]
		}
		if err := checkValue(value); err != nil {
			return err
		}
	}
	return nil
}

// needsNext says that an option's value is the next argument.
const needsNext = "\x00"

func (m mkfs) valueOf(letters string) (string, error) {
	for i, letter := range letters {
		switch {
		case strings.ContainsRune(m.valued, letter) && i+1 < len(letters):
			return letters[i+1:], nil
		case strings.ContainsRune(m.valued, letter):
			return needsNext, nil
		case !strings.ContainsRune(m.plain, letter):
			return "", fmt.Errorf("option -%c of %s is not passed on; remove it", letter, m.program)
		}
	}
	return "", nil
}

func checkValue(value string) error {
	if strings.Contains(value, "/") {
		return fmt.Errorf("%q names a file of the node; remove it", value)
	}
	for sub := range strings.SplitSeq(value, ",") {
		name, _, assigned := strings.Cut(sub, "=")
		if assigned && slices.Contains(refusedSuboptions, name) {
			return fmt.Errorf("%q names a file or a device of the node; remove it", sub)
		}
	}
	return nil
}
