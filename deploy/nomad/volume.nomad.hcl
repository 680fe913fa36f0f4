# A volume that starts from the image "fedora-42": nomad volume create volume.nomad.hcl
id        = "web-1"
name      = "web-1"
type      = "csi"
plugin_id = "plinth"

capacity_min = "20GiB"

capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}

parameters {
  backingImage = "fedora-42"
  partition    = "1"
}
