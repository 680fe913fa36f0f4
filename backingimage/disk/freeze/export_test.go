package freeze

import "time"

// SetLimit replaces Limit in this process.
func SetLimit(d time.Duration) { limit = d }

// Mark writes a marker as While does.
var Mark = mark
