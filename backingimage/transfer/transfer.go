// Package transfer moves images between machines and people: the HTTPS server that an agent runs, and its client.
//
// # Who speaks to whom
//
// An agent has an Identity: a key that it makes at its first start. The SHA-256 of the public key stands beside the agent's
// address in the status of its StorageNode, and a client accepts exactly the server that has it: who can be trusted is
// said by the API, so there is no authority to run and no certificate to renew. TLS 1.3 is the only version.
//
// A caller proves itself with a token. Whoever may write the BackingImage puts the token's SHA-256 and the end of its life
// into spec.accessTokens; whoever knows the token then uploads this image, or downloads it, and nothing else. A caller
// without a good token learns nothing, not even whether an image exists.
//
// # Uploads
//
// An upload is the tus protocol, resumable at any byte (POST, HEAD and PATCH on /v1/uploads/{uid}). Its ID is the image's
// UID, so that who resumes needs to remember nothing, and its bytes go to a directory of their own beside the copy that
// is made of them: the file grows, and a Source reads behind it, so that hashing, digests and conversion run while bytes
// arrive. An upload that is idle for too long expires, and its copy fails with that reason.
//
// # Downloads
//
// A ready copy is read by its manifest (GET /v1/images/{uid}/manifest) and in ranges (GET /v1/images/{uid}/data). The
// receiver compares every chunk with the manifest, and the manifest with the content digest that the API states: a server
// is believed nothing.
package transfer
