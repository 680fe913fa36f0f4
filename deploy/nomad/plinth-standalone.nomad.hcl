# Plinth's control plane, and one node's disks, on one client of Nomad: docs/how-to/nomad.md.
#
#   nomad job run -var image=registry.example.org/plinth:v1-standalone -var client=NAME plinth-standalone.nomad.hcl

variable "image" {
  description = "Image of plinth standalone: deploy/Dockerfile, --target standalone."
  type        = string
}

variable "client" {
  description = "Name of the Nomad client that has the control plane. Its data is there, so the job stays there."
  type        = string
}

variable "datacenters" {
  type    = list(string)
  default = ["*"]
}

job "plinth" {
  type        = "service"
  datacenters = var.datacenters
  priority    = 90

  constraint {
    attribute = "${node.unique.name}"
    value     = var.client
  }

  group "plinth" {
    network {
      mode = "host"
      port "api" { static = 6443 }
      port "peers" { static = 9281 }
      port "http" { static = 9280 }
    }

    restart {
      attempts = 10
      interval = "5m"
      delay    = "5s"
      mode     = "delay"
    }

    task "plinth" {
      driver       = "docker"
      kill_timeout = "60s"

      config {
        image        = var.image
        network_mode = "host"
        # The kernel demands it: loop devices, and mounts that the host sees.
        privileged = true
        args = [
          "standalone",
          "--node-name=${node.unique.name}",
          "--csi-endpoint=unix:///csi/csi.sock",
          "--data-dir=/var/lib/plinth",
          "--api-listen=:6443",
          "--peer-listen=:9281",
          "--http-listen=:9280",
          "--advertise-address=${attr.unique.network.ip-address}",
        ]
        mount {
          type   = "bind"
          source = "/var/lib/plinth"
          target = "/var/lib/plinth"
          bind_options { propagation = "rshared" }
        }
        mount {
          type   = "bind"
          source = "/dev"
          target = "/dev"
        }
      }

      csi_plugin {
        id             = "plinth"
        type           = "monolith"
        mount_dir      = "/csi"
        health_timeout = "2m"
      }

      resources {
        cpu    = 200
        memory = 512
      }

      service {
        name     = "plinth"
        port     = "http"
        provider = "nomad"
        check {
          type     = "http"
          path     = "/readyz"
          interval = "10s"
          timeout  = "2s"
        }
      }
    }
  }
}
