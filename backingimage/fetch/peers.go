package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"

	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/source"
)

// Peer is another agent that has the image of a PeerJob, or is getting it. Nothing that it says is believed. Its methods may
// be called at once by many; NotFound is what it has not, or not yet, and NotReady that it cannot be asked just now.
type Peer interface {
	// Node is the name of its node, for people.
	Node() string
	// Endpoint is its address and key: two Peers with equal ones are the same.
	Endpoint() string
	// Manifest gets the manifest, in file form.
	Manifest(ctx context.Context) ([]byte, error)
	// Record gets what the copy is.
	Record(ctx context.Context) (Record, error)
	// Chunks gets which chunks it has, of a content with the digest.
	Chunks(ctx context.Context, contentDigest string) (manifest.Bitmap, error)
	// Data opens so many bytes of the content, from an offset on: whole chunks. choice says that the caller could as well take
	// others: then Busy means that the peer has just given these to somebody else, who will give them on.
	Data(ctx context.Context, offset, bytes int64, choice bool) (io.ReadCloser, error)
	// Close closes connections that are idle. The peer may be used afterwards.
	Close()
}

// PeerJob is one image that other agents have and that is to be had here, too.
type PeerJob struct {
	Dir             string // see Job.Dir
	Image, ImageUID string // see Job
	What            string // it is, for people; "image" and its name by default
	ContentDigest   string // that the image has; required
	Checksum        string // see Job; what a peer says of the source file is compared with it
	// Peers lists the agents that may have the image. It is called at the beginning and now and then.
	Peers func(context.Context) ([]Peer, error)
	// Shares gets what is there so far, for others; may be nil.
	Shares *Shares
	// Clock of the record; the real one by default.
	Clock clock.Clock
	// Patience is for how long nothing may come from anyone before FromPeers ends with NotReady; 60 s by default.
	Patience time.Duration
	// Stall is for how long a peer may send no byte of what it was asked for; 30 s by default.
	Stall time.Duration
	// Received and Retried are told of each chunk that has come, and of each that has to come from elsewhere, and why; may
	// be nil.
	Received func(bytes int64)
	Retried  func(reason string)

	want source.Checksum // Checksum, read
}

// Why a chunk has to come from elsewhere.
const (
	RetriedWrong  = "wrong"  // its bytes were not what the manifest says
	RetriedFailed = "failed" // the connection broke, or the peer refused
	RetriedLate   = "late"   // no byte came for too long
)

const defaultStall = 30 * time.Second

// offerFile is where a staging directory has the record that a peer gave.
const offerFile = "offer.json"

// FromPeers makes a copy of what other agents have of it, complete ones and those that are still getting it. Each chunk is
// compared with the manifest when it arrives, and the manifest with the content digest that the API states. It is safe to
// repeat and to kill: what is in the directory, whoever put it there, is compared with the manifest and only the rest is
// asked for. That costs one reading of what is there, a small part of what getting it would, and relies on nothing that a
// power loss can take.
//
// Errors: NotReady when no peer gave anything for too long, with what is wrong with each of them; Precondition when the image
// has no content digest yet; Full; those of ctx.
func FromPeers(ctx context.Context, job PeerJob, report func(Progress)) (Result, error) {
	if err := job.validate(); err != nil {
		return Result{}, err
	}
	progress := newMeter(job.Clock, report)
	result, err := job.run(ctx, progress)
	if err == nil {
		return result, nil
	}
	err = ended(ctx, err, job.Dir, progress.progress.VirtualBytes)
	return Result{}, fmt.Errorf("receive %s: %w", job.What, err)
}

func (j *PeerJob) validate() error {
	if j.Dir == "" || j.Peers == nil {
		return errors.New("fetch: a job needs a directory and peers")
	}
	if j.What == "" {
		j.What = "image " + j.Image
	}
	if j.ContentDigest == "" {
		return backingimage.Errorf(backingimage.Precondition, "%s has no content digest yet, so that nothing of it can be believed; its first copy comes from its source", j.What)
	}
	var err error
	if j.want, err = source.ParseChecksum(j.Checksum); err != nil {
		return err
	}
	if j.Clock == nil {
		j.Clock = clock.RealClock{}
	}
	if j.Patience == 0 {
		j.Patience = 60 * time.Second
	}
	if j.Stall == 0 {
		j.Stall = defaultStall
	}
	if j.Received == nil {
		j.Received = func(int64) {}
	}
	if j.Retried == nil {
		j.Retried = func(string) {}
	}
	return nil
}

func (j *PeerJob) run(ctx context.Context, progress *meter) (Result, error) {
	staged := staging(j.Dir)
	if err := staged.make(); err != nil {
		return Result{}, err
	}
	if done, err := Load(j.Dir); err == nil && done.ImageUID == j.ImageUID && done.ContentDigest == j.ContentDigest {
		return done.Result, staged.clean()
	}
	started := j.Clock.Now()
	progress.step(Receiving, 0, -1)
	s := newSwarm(j, progress)
	defer s.close()
	if err := s.open(ctx, staged); err != nil {
		return Result{}, err
	}
	if err := s.fill(ctx); err != nil {
		return Result{}, err
	}
	if err := settle(s.content.file, s.manifest.Bytes()); err != nil {
		return Result{}, err
	}
	record := s.record
	record.Image, record.ImageUID = j.Image, j.ImageUID
	record.Started, record.Finished = started.UTC(), j.Clock.Now().UTC()
	return staged.seal(record, s.manifest)
}

// plausible reports what is wrong with a record that a peer gave for a copy of the manifest's content.
func (j *PeerJob) plausible(r Record, m *manifest.Manifest) error {
	const long = 4 << 10
	switch {
	case r.Version != recordVersion:
		return fmt.Errorf("its record has version %d, this program knows version %d", r.Version, recordVersion)
	case r.ImageUID != j.ImageUID || r.ContentDigest != j.ContentDigest || r.VirtualBytes != m.Bytes():
		return errors.New("its record is of another content")
	case r.Checksum != "" && j.want.Algorithm == source.SHA512 && r.Checksum != j.want.Hex:
		return fmt.Errorf("its record says that the source file had the SHA-512 %.128q, but the image asks for %s", r.Checksum, j.want)
	case r.SourceBytes < 0 || r.Checksum != "" && !sha512Pattern.MatchString(r.Checksum) || !wordPattern.MatchString(r.Format) ||
		len(r.Source)+len(r.SourceIdentity)+len(r.Warning)+len(r.Resolved) > long:
		return errors.New("its record cannot be true")
	}
	return nil
}

// What a record may say.
var (
	sha512Pattern = regexp.MustCompile(`^[0-9a-f]{128}$`)
	wordPattern   = regexp.MustCompile(`^[a-z0-9+.-]{1,64}$`)
)

// ChunkFromPeers fills chunk with the chunk of that index, from whichever peer gives the bytes that have the digest. NotFound
// when there is no peer; NotReady, with what is wrong with each, when none gives it.
func ChunkFromPeers(ctx context.Context, peers []Peer, index int64, want manifest.Digest, chunk []byte) error {
	if len(peers) == 0 {
		return backingimage.Errorf(backingimage.NotFound, "no other node has a copy")
	}
	var troubles []error
	for _, p := range peers {
		err := readChunk(ctx, p, index, want, chunk)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		troubles = append(troubles, fmt.Errorf("%s: %w", p.Node(), err))
	}
	return backingimage.Errorf(backingimage.NotReady, "no peer gives chunk %d (from byte %d): %w", index, index*manifest.ChunkBytes, errors.Join(troubles...))
}

func readChunk(ctx context.Context, p Peer, index int64, want manifest.Digest, chunk []byte) error {
	ctx, guard := newGuard(ctx, defaultStall)
	defer guard.stop()
	body, err := p.Data(ctx, index*manifest.ChunkBytes, int64(len(chunk)), false)
	if err != nil {
		return guard.cause(err)
	}
	defer body.Close()
	guard.begin(int64(len(chunk)))
	if _, err := io.ReadFull(guard.reader(body), chunk); err != nil {
		return guard.cause(err)
	}
	if manifest.Sum(chunk) != want {
		return wrongChunk(index)
	}
	return nil
}

func wrongChunk(index int64) error {
	return backingimage.Errorf(backingimage.Corrupt, "it sent chunk %d (from byte %d) with other bytes than the manifest says", index, index*manifest.ChunkBytes)
}

// offered are the files of a staging directory that FromPeers can go on from.
var offered = []string{disk.ImageFile, disk.ManifestFile, offerFile}
