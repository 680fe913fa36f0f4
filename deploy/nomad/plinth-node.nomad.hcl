# Plinth's agent on every other client of Nomad: docs/how-to/nomad.md. Each client has a kubeconfig of its own, which `plinth node join-config`
# made for its name, in /etc/plinth/kubeconfig.
#
#   nomad job run -var image=registry.example.org/plinth:v1 -var client=NAME plinth-node.nomad.hcl

variable "image" {
  description = "Image of plinth: deploy/Dockerfile."
  type        = string
}

variable "client" {
  description = "Name of the Nomad client that runs plinth standalone, and so no agent."
  type        = string
}

variable "datacenters" {
  type    = list(string)
  default = ["*"]
}

job "plinth-node" {
  type        = "system"
  datacenters = var.datacenters
  priority    = 90

  constraint {
    attribute = "${node.unique.name}"
    operator  = "!="
    value     = var.client
  }

  group "plinth" {
    network {
      mode = "host"
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
        privileged   = true
        args = [
          "node",
          "--node-name=${node.unique.name}",
          "--kubeconfig=/etc/plinth/kubeconfig",
          "--csi-endpoint=unix:///csi/csi.sock",
          "--data-dir=/var/lib/plinth",
          "--peer-listen=:9281",
          "--http-listen=:9280",
          "--advertise-address=${attr.unique.network.ip-address}",
        ]
        mount {
          type     = "bind"
          source   = "/etc/plinth"
          target   = "/etc/plinth"
          readonly = true
        }
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
        type           = "node"
        mount_dir      = "/csi"
        health_timeout = "2m"
      }

      resources {
        cpu    = 200
        memory = 512
      }
    }
  }
}
