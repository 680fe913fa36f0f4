package apart

import "time"

// Rest sets how long a connection stays without a request, and then the program without a connection.
func Rest(d time.Duration) { idleTimeout, restTime = d, d }
