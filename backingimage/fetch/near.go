package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/source"
)

// NearJob is one image that is to be made of what this machine has already: another image's copy (Clone), or a volume's
// content (Export).
type NearJob struct {
	Dir             string      // see Job.Dir
	Image, ImageUID string      // see Job
	Source          string      // what it is made of, for people; jobs with equal sources are of one image's
	Resolved        string      // what Source stood for, see Result
	Checksum        string      // see Job
	ContentDigest   string      // see Job
	Clock           clock.Clock // the real one by default
}

func (j *NearJob) identity() string {
	sum := sha256.Sum256([]byte(j.Source))
	return hex.EncodeToString(sum[:])
}

// near runs what makes the copy of a NearJob, with the rules of Run: a finished copy is returned as it is, and an error that
// trying again cannot mend takes the directory with it.
func near(ctx context.Context, job NearJob, report func(Progress), what string, make func(staging, source.Checksum, *meter) (Result, *manifest.Manifest, error)) (Result, error) {
	if job.Clock == nil {
		job.Clock = clock.RealClock{}
	}
	progress := newMeter(job.Clock, report)
	result, err := job.run(progress, make)
	if err == nil {
		return result, nil
	}
	err = ended(ctx, err, job.Dir, progress.progress.Total)
	return Result{}, fmt.Errorf("%s %s as image %s: %w", what, job.Source, job.Image, err)
}

func (j *NearJob) run(progress *meter, make func(staging, source.Checksum, *meter) (Result, *manifest.Manifest, error)) (Result, error) {
	if j.Dir == "" || j.Source == "" {
		return Result{}, errors.New("a job needs a directory and a source")
	}
	want, err := source.ParseChecksum(j.Checksum)
	if err != nil {
		return Result{}, err
	}
	staged := staging(j.Dir)
	if err := staged.make(); err != nil {
		return Result{}, err
	}
	if done, err := Load(j.Dir); err == nil && j.fits(done) {
		return done.Result, staged.clean()
	}
	started := j.Clock.Now()
	result, m, err := make(staged, want, progress)
	if err != nil {
		return Result{}, err
	}
	return j.finish(staged, result, m, started)
}

// fits reports whether a finished copy is the one that the job wants.
func (j *NearJob) fits(r Record) bool {
	return r.ImageUID == j.ImageUID && r.SourceIdentity == j.identity() && (j.ContentDigest == "" || j.ContentDigest == r.ContentDigest)
}

// finish turns a directory with a complete, synced content into a finished copy; see staging.finish.
func (j *NearJob) finish(staged staging, result Result, m *manifest.Manifest, started time.Time) (Result, error) {
	if j.ContentDigest != "" && j.ContentDigest != result.ContentDigest {
		return Result{}, backingimage.Errorf(backingimage.Corrupt, "it holds something else by now: the image's content digest is %s, what %s holds has %s; create a new image for the new content",
			j.ContentDigest, j.Source, result.ContentDigest)
	}
	result.Resolved = j.Resolved
	return staged.seal(Record{
		Version: recordVersion, Image: j.Image, ImageUID: j.ImageUID, Source: j.Source, SourceIdentity: j.identity(),
		Started: started.UTC(), Finished: j.Clock.Now().UTC(), Result: result,
	}, m)
}
