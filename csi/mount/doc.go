// Package mount puts volumes' filesystems where workloads see them. It knows devices, filesystems and paths; it knows
// no volumes and no requests.
//
// What it works with:
//
//   - a Device is a block device as the kernel describes it now;
//   - a Point is one mount in this process's namespace. What is mounted where is read from the kernel each time and
//     remembered nowhere, so there is no record that a crash could leave behind;
//   - Content is what a device holds: a filesystem, a partition table, another signature, or nothing.
//
// # What a kill leaves behind
//
// Every function may be killed and repeated. Bind attaches a mount that is already read-only if it has to be, so there
// is no moment at which it is writable. Format writes the mark by which its filesystem is known as its last step:
// mke2fs writes the first superblock after all else, so an ext4 that was not finished is blank; mkfs.xfs writes its
// superblock first, but with a flag that it clears at the end and that the kernel refuses to mount, so Probe reports
// such an XFS as Unfinished. Check and GrowUnmounted are not ended by their context: a resize cut short can leave
// a filesystem that only a person can repair, and a check that a deadline cuts short each time would never end. All
// these programs open the device exclusively, so one that outlived its parent keeps a second one out.
//
// # Growing
//
// XFS grows only while mounted, ext4 better while it is not: growing a mounted ext4 needs CAP_SYS_RESOURCE, which
// containers often lack. Whether there is anything to grow is read from the superblock, not by running a program.
package mount
