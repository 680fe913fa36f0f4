package cloudtest

import (
	"context"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"plinth.dev/plinth/backingimage/source/servertest"
	"plinth.dev/plinth/test/plinthtest"
)

// AzureAccount is the storage account of MustAzure's server, AzureKey its key.
const (
	AzureAccount = "plinthtest"
	AzureKey     = "c2VDclRrRVlvZlRoZVRlc3RzLXNlQ3JUa0VZb2ZUaGVUZXN0cy1zZUNyVGtFWW9mVGhlVGVzdHM9PQ=="
)

// MustAzure runs a Blob Storage server with one container, and returns its address and a token with all rights to the container.
func MustAzure(tb testing.TB, name string) (address, token string) {
	tb.Helper()
	dir, program := tb.TempDir(), plinthtest.MustTool(tb, "azurite-blob")
	address = servertest.MustRun(tb, func(address string) *exec.Cmd {
		host, port, err := net.SplitHostPort(address)
		must(tb, err)
		cmd := exec.Command(program, "--blobHost", host, "--blobPort", port, "--location", dir, "--silent", "--skipApiVersionCheck", "--disableTelemetry")
		cmd.Env = append(os.Environ(), "AZURITE_ACCOUNTS="+AzureAccount+":"+AzureKey)
		return cmd
	})
	key, err := azblob.NewSharedKeyCredential(AzureAccount, AzureKey)
	must(tb, err)
	client, err := container.NewClientWithSharedKeyCredential("http://"+address+"/"+AzureAccount+"/"+name, key, nil)
	must(tb, err)
	_, err = client.Create(context.Background(), nil)
	must(tb, err)
	signed, err := sas.BlobSignatureValues{
		Protocol: sas.ProtocolHTTPSandHTTP, ExpiryTime: time.Now().Add(time.Hour).UTC(), ContainerName: name,
		Permissions: (&sas.ContainerPermissions{Read: true, Write: true, Create: true, Delete: true, List: true}).String(),
	}.SignWithSharedKey(key)
	must(tb, err)
	return address, signed.Encode()
}
