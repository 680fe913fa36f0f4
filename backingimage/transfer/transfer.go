// Package transfer moves images between machines and people: the HTTPS server that an agent runs, and its client.
//
// # Who speaks to whom
//
// An agent has an Identity: a key that it makes at its first start. The SHA-256 of the public key stands beside the agent's
// address in the status of its StorageNode, and a client accepts exactly the server that has it: who can be trusted is
// said by the API, so there is no authority to run and no certificate to renew. TLS 1.3 is the only version.
//
// A person's program proves itself with a token. Whoever may write the BackingImage puts the token's SHA-256 and the end of its life
// into spec.accessTokens; whoever knows the token then uploads this image, or downloads it, and nothing else. A caller
// without a good token learns nothing, not even whether an image exists.
//
// # Peers
//
// Agents give images to each other. An agent that asks shows its own key, as the server does; it is a peer when some
// StorageNode's status has that key, and may then read every image: its manifest, what the copy is (GET
// /v1/images/{uid}/record), which chunks are there (GET /v1/images/{uid}/have, a manifest.Bitmap), and the data. A copy that
// is itself being received is given away as well, in ranges of whole chunks that have been compared with the manifest.
//
// Contents go out at a bounded rate, and few at a time, so that one of many receivers soon has something whole. A peer that
// says that it could take other chunks (Plinth-Choice) is told 423 when another peer has just got these: one sender with many
// receivers gives each a different part, and they give that to each other. How a receiver chooses is package fetch's affair.
//
// # Snapshots
//
// An agent gives the snapshots of volumes that are on its disks to other agents in the same way (/v1/snapshots/{uid}/…), so that a volume
// can be made from one elsewhere. Their manifest is computed when the first one asks. GET /v1/snapshots/{uid}/extents says where a
// snapshot has data, or differs from another one, to peers and to who has a token in the snapshot's spec.accessTokens: a
// controller, which is no node.
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
