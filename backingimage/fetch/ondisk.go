package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/direct"
	"plinth.dev/plinth/backingimage/durable"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/parallel"
)

// open finds out what the image is, and what of it is here already.
func (s *swarm) open(ctx context.Context, staged staging) error {
	if err := staged.cleanExcept(offered...); err != nil {
		return err
	}
	if !s.offerOnDisk(staged) {
		if err := s.offerOfPeers(ctx, staged); err != nil {
			return err
		}
	}
	s.share = newShare(staged.path(disk.ImageFile), s.record, s.manifest)
	s.data, s.missing = s.manifest.Data(), s.manifest.Data()
	s.dataCount = s.data.Count()
	s.meter.say(func(p *Progress) {
		p.Format, p.SourceBytes, p.VirtualBytes = s.record.Format, s.record.SourceBytes, s.manifest.Bytes()
	})
	if err := s.openContent(ctx, staged.path(disk.ImageFile)); err != nil {
		return err
	}
	if s.job.Shares != nil {
		s.job.Shares.put(s.share)
	}
	return nil
}

// offerOnDisk takes up the manifest and the record that an earlier attempt was given.
func (s *swarm) offerOnDisk(staged staging) bool {
	file, err := os.ReadFile(staged.path(disk.ManifestFile))
	if err != nil {
		return false
	}
	m, err := manifest.Parse(file)
	if err != nil || m.ContentDigest() != s.job.ContentDigest {
		return false
	}
	text, err := os.ReadFile(staged.path(offerFile))
	if err != nil {
		return false
	}
	var r Record
	if json.Unmarshal(text, &r) != nil || s.job.plausible(r, m) != nil {
		return false
	}
	s.manifest, s.record = m, r
	return true
}

// offer is what a peer says that the image is.
type offer struct {
	file     []byte // the manifest's
	manifest *manifest.Manifest
	record   Record
}

// offerAsks is how many peers are asked at a time for what the image is.
const offerAsks = 3

// offerOfPeers gets manifest and record from whichever peer is the first to give what fits the image.
func (s *swarm) offerOfPeers(ctx context.Context, staged staging) error {
	ctx, cancel := context.WithCancel(ctx)
	group, gctx := parallel.WithContext(ctx)
	defer func() { cancel(); _ = group.Wait() }()
	offers := make(chan offer, 1)
	for {
		s.gather(gctx, group)
		for _, m := range s.unheard() {
			group.Go(func() error { s.askOffer(gctx, m, offers); return nil })
		}
		select {
		case o := <-offers:
			s.manifest, s.record = o.manifest, o.record
			return s.saveOffer(staged, o.file)
		default:
		}
		if err := s.waits(); err != nil {
			return err
		}
		if err := s.pause(gctx); err != nil {
			return err
		}
	}
}

// unheard are the members that are to be asked now for what the image is, marked as such.
func (s *swarm) unheard() []*member {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*member
	asking := 0
	for _, m := range s.members {
		switch {
		case m.asking:
			asking++
		case !m.gone && !time.Now().Before(m.rest):
			list = append(list, m)
		}
	}
	list = list[:min(len(list), max(offerAsks-asking, 0))]
	for _, m := range list {
		m.asking = true
	}
	return list
}

func (s *swarm) askOffer(ctx context.Context, m *member, offers chan<- offer) {
	o, err := s.offerOf(ctx, m)
	s.mu.Lock()
	defer s.mu.Unlock()
	m.asking = false
	if err != nil && ctx.Err() == nil {
		m.tired(err)
	}
	if err == nil {
		select {
		case offers <- o:
		default: // another was faster
		}
	}
	s.poke()
}

// offerOf asks a member for the record and the manifest.
func (s *swarm) offerOf(parent context.Context, m *member) (offer, error) {
	record, err := bounded(parent, answerBound, m.peer.Record)
	if err != nil {
		return offer{}, err
	}
	file, err := bounded(parent, manifestBound, m.peer.Manifest)
	if err != nil {
		return offer{}, err
	}
	parsed, err := manifest.Parse(file)
	if err != nil {
		return offer{}, err
	}
	if digest := parsed.ContentDigest(); digest != s.job.ContentDigest {
		return offer{}, backingimage.Errorf(backingimage.Corrupt, "it has another content: its digest is %s, the image's is %s", digest, s.job.ContentDigest)
	}
	if err := s.job.plausible(record, parsed); err != nil {
		return offer{}, backingimage.Errorf(backingimage.Corrupt, "%w", err)
	}
	return offer{file, parsed, record}, nil
}

// manifestBound is for a manifest, which of the largest images has some MiB.
const manifestBound = 5 * time.Minute

// bounded asks a peer for something that must come within a time.
func bounded[T any](parent context.Context, bound time.Duration, get func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(parent, bound)
	defer cancel()
	got, err := get(ctx)
	if err != nil && ctx.Err() != nil && parent.Err() == nil {
		err = backingimage.Errorf(backingimage.NotReady, "it did not answer for %s", bound)
	}
	return got, err
}

func (s *swarm) saveOffer(staged staging, file []byte) error {
	text, err := json.Marshal(s.record)
	if err != nil {
		return fmt.Errorf("encode the record: %w", err)
	}
	if err := durable.WriteFile(staged.path(offerFile), text, 0o600); err != nil {
		return err
	}
	return durable.WriteFile(staged.path(disk.ManifestFile), file, 0o600)
}

// openContent opens the content, or makes it, and finds out which chunks of it are there. Chunks are written past the page cache: what
// that costs in processor time is half of what receiving them costs, and few are read again by those who ask for them.
func (s *swarm) openContent(ctx context.Context, path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if s.content, err = newContentFile(path, s.manifest.Bytes(), new(manifest.Builder)); err == nil {
			s.content.direct = direct.NewWriter(s.content.file)
		}
		s.count()
		return err
	}
	if err != nil {
		return fmt.Errorf("continue: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("continue: %w", err)
	}
	s.content = &contentFile{file: f, direct: direct.NewWriter(f), digests: new(manifest.Builder)}
	if info.Size() != s.manifest.Bytes() {
		if err := f.Truncate(s.manifest.Bytes()); err != nil {
			return fmt.Errorf("set the size of %s: %w", path, err)
		}
	}
	err = s.compare(ctx)
	s.count()
	return err
}

// count counts what is missing.
func (s *swarm) count() {
	s.left = s.missing.Count()
	s.unasked = s.left
	s.done = s.manifest.DataBytes()
	for i := range s.manifest.Chunks() {
		if s.missing.Has(i) {
			_, length := s.manifest.Span(i)
			s.done -= length
		}
	}
}

// compare keeps the chunks that are right and makes holes of all others: a chunk that comes is written without its zeros.
func (s *swarm) compare(ctx context.Context) error {
	s.meter.step(Verifying, 0, s.manifest.Bytes())
	var mu sync.Mutex
	return eachChunk(ctx, s.manifest, func(index int64, buffer []byte) error {
		offset, length := s.manifest.Span(index)
		s.meter.at(offset)
		if isHole(s.content.file, offset, length) {
			return nil
		}
		if want := s.manifest.Digest(index); !want.IsZero() {
			if _, err := s.content.file.ReadAt(buffer[:length], offset); err == nil && manifest.Sum(buffer[:length]) == want {
				mu.Lock()
				defer mu.Unlock()
				s.missing.Clear(index)
				s.share.add(index)
				return nil
			}
		}
		if err := unix.Fallocate(int(s.content.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length); err != nil {
			return fmt.Errorf("clear chunk %d: %w", index, err)
		}
		return nil
	})
}
