// Package backup keeps the contents of volumes and images in an object store, and brings them back.
//
// A Repository is what one BackupTarget holds. A content is cut into blocks of 2 MiB, as images are into chunks; a block is an object
// named by the BLAKE3 digest of its bytes, so that what is there is never sent again, whoever had it first; blocks of zeros are
// not stored. A page lists the blocks of one GiB, and is an object named by its digest as well. A Manifest is one backup: it names the
// pages, and is written last, so a backup is there whole or not at all. Manifests do not build upon each other: each can be
// deleted at any time without harm to the others.
//
// A volume that began as an image has only the blocks in its pages that may differ from the image's; its manifest names the
// image's pages too, which all backups of all volumes of that image share. An incremental backup takes over the entries, and whole pages,
// of the last one for what did not change, and does not read it.
//
// docs/reference/backup-format.md has the format, for whoever wants to write another reader.
//
// # Encryption
//
// With a key, a block's name is a keyed digest and its content is sealed with AES-256-GCM under a key of its own. Whoever has the
// store learns sizes and times, and which backups share blocks; he can withhold, but not alter. The repository's description has a
// check of the key, which is compared before anything else is read.
//
// # Garbage
//
// Objects that no manifest needs are removed by Collect, while backups are being made, also by other clusters, and without locks. A name
// is first condemned: written into a list. It is deleted when the list is older than the grace time, and everything that is
// reachable has been looked up anew since. Who makes a backup, a Session, keeps two rules. It reads the lists before it relies on any
// object that it finds, relies on none that is condemned, and stores that content under another name instead. And it has its
// manifest written within the grace time after it read the lists; when it needs longer it reads them again, and if one of its objects is
// condemned by then, it starts over.
//
// Why nothing is lost: say a session read the lists at t0, relied on object x and wrote its manifest at t3. If x is in a list of before t0,
// the session would have seen that. So x is only in lists written after t0; none of those is acted upon before t0 + grace, and the
// look-up that precedes this is later than t3: it finds the manifest, and x stays. A page's blocks count as reachable while the page is
// there and is not itself about to be deleted, needed by a manifest or not: so a session that finds a page may rely on its
// blocks, too.
//
// A list stays for another grace time after it was acted upon, and a name that it holds is not used again while it does, so a collector
// that was slow deletes nothing that is new. All times are the store's own or were measured with one process's monotonic clock; no
// two clocks are compared. What has to hold: the store shows what was written and deleted at once (S3, GCS, Azure and directories
// do), and no process stands still, between deciding to delete and deleting, for the whole grace time.
package backup
