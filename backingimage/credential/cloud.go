package credential

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"regexp"
	"strings"
)

// readGoogle takes the key of a service account. Other sorts of Google's credentials name files, programs and servers that are to be asked,
// which a secret must not choose: they are the machine's, and used when the secret says so.
func readGoogle(c *Credential, value []byte) error {
	c.GoogleCredentials = Secret(bytes.TrimSpace(value))
	if c.GoogleCredentials.Reveal() == Ambient {
		return nil
	}
	var key struct {
		Type  string `json:"type"`
		Email string `json:"client_email"`
		Key   string `json:"private_key"`
	}
	if json.Unmarshal(value, &key) != nil { // its error would quote the text
		return errors.New("is not JSON; give the content of the service account's key file, or the word " + Ambient + " for the identity of the machine or pod")
	}
	if key.Type != "service_account" || key.Email == "" || key.Key == "" {
		return errors.New("is not the key of a service account; give the content of its key file, or the word " + Ambient + " for the identity of the machine or pod")
	}
	return nil
}

var azureAccount = regexp.MustCompile(`^[a-z0-9]{3,24}$`)

func readAzureAccount(c *Credential, value []byte) error {
	c.AzureAccount = string(bytes.TrimSpace(value))
	if !azureAccount.MatchString(c.AzureAccount) {
		return errors.New("is not the name of a storage account, which has 3 to 24 lower-case letters and digits")
	}
	return nil
}

func readAzureKey(c *Credential, value []byte) error {
	if err := line(&c.AzureKey, value); err != nil {
		return err
	}
	if key, err := base64.StdEncoding.DecodeString(c.AzureKey.Reveal()); err != nil || len(key) == 0 {
		return errors.New("is not in base64; give the key as Azure shows it")
	}
	return nil
}

func readAzureToken(c *Credential, value []byte) error {
	if err := line(&c.AzureToken, value); err != nil {
		return err
	}
	c.AzureToken = Secret(strings.TrimPrefix(c.AzureToken.Reveal(), "?"))
	if query, err := url.ParseQuery(c.AzureToken.Reveal()); err != nil || query.Get("sig") == "" {
		return errors.New("is not a shared access signature; give the token as Azure shows it: sv=…&sig=…")
	}
	return nil
}
