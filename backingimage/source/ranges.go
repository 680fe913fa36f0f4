package source

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// span is what one request asks for: bytes bytes from offset on, or all from there when bytes is 0, of the version that the
// validator names, or of any when it is empty.
type span struct {
	offset, bytes int64
	validator     string
}

// whole is a file from its beginning to its end, in whichever version there is.
var whole = span{}

func (s span) isWhole() bool { return s.offset == 0 && s.bytes == 0 }

// ask sets the headers of the request.
func (s span) ask(header http.Header) {
	if s.isWhole() {
		return
	}
	last := ""
	if s.bytes > 0 {
		last = strconv.FormatInt(s.offset+s.bytes-1, 10)
	}
	header.Set("Range", fmt.Sprintf("bytes=%d-%s", s.offset, last))
	if s.validator != "" {
		header.Set("If-Range", s.validator)
	}
}

// errUnfit is an answer to a range request that cannot be used, while the whole file perhaps can be had.
var errUnfit = errors.New("the answer does not fit the range that was asked for")

// acceptRange trusts a 206 only if it begins where it was asked to, in the same version of the file, and tells the size
// of the whole. It may end earlier than what was asked for.
func acceptRange(resp *http.Response, asked span) (*Body, error) {
	first, last, size, ok := parseContentRange(resp.Header.Get("Content-Range"))
	switch {
	case asked.isWhole(), !ok, first != asked.offset:
		return nil, errUnfit
	case resp.ContentLength >= 0 && resp.ContentLength != last-first+1:
		return nil, errUnfit
	case asked.validator != "" && changed(resp.Header, asked.validator):
		return nil, errUnfit
	}
	return &Body{Offset: asked.offset, Bytes: size, Validator: asked.validator, Ranges: asked.validator != ""}, nil
}

// givesRanges reports whether an answer of the whole file offers pieces of it.
func givesRanges(header http.Header) bool {
	return strings.EqualFold(header.Get("Accept-Ranges"), "bytes") && validatorOf(header) != ""
}

// changed reports whether an answer names another version than the validator does. A 206 need not name any.
func changed(header http.Header, validator string) bool {
	if tag := header.Get("ETag"); tag != "" && strings.HasPrefix(validator, `"`) {
		return tag != validator
	}
	if date := header.Get("Last-Modified"); date != "" && !strings.HasPrefix(validator, `"`) {
		return date != validator
	}
	return false
}

// validatorOf is what may be sent as If-Range: a strong ETag, else a Last-Modified that is older than the answer by a
// second at least, so that the file cannot have changed again within its resolution (RFC 9110, 8.8.2.2).
func validatorOf(header http.Header) string {
	if tag := header.Get("ETag"); strings.HasPrefix(tag, `"`) {
		return tag
	}
	modified, err := http.ParseTime(header.Get("Last-Modified"))
	if err != nil {
		return ""
	}
	date, err := http.ParseTime(header.Get("Date"))
	if err != nil || date.Sub(modified) < time.Second {
		return ""
	}
	return header.Get("Last-Modified")
}

// parseContentRange reads "bytes first-last/size". A size that is not told, "*", is not ok.
func parseContentRange(value string) (first, last, size int64, ok bool) {
	span, found := strings.CutPrefix(value, "bytes ")
	span, total, slash := strings.Cut(span, "/")
	from, to, dash := strings.Cut(span, "-")
	if !found || !slash || !dash {
		return 0, 0, 0, false
	}
	var numbers [3]int64
	for i, s := range []string{from, to, total} {
		n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
		if err != nil || n < 0 {
			return 0, 0, 0, false
		}
		numbers[i] = n
	}
	first, last, size = numbers[0], numbers[1], numbers[2]
	return first, last, size, first <= last && last < size
}
