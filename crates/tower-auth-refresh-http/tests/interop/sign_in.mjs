// A certified OpenID provider with its own login pages, for the tests in ../sign_in_interop.
//
// It prints one line of JSON, {"port": …}, once it listens, and ends when its standard input does.
//
//   POST /test/client  the metadata of a client → 204: registers it
//   POST /test/tls     {"folder"} → {"port"}: serves the provider over TLS too, with the certificates in that folder, and
//                      asks for client certificates

import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';

import { Provider } from 'oidc-provider';

// Standard output carries only the port; the reader stops after it. The login pages are announced as a warning.
console.info = console.error;
console.warn = () => {};

// By default, a connection that is idle for 5 s is closed, and a request that is sent meanwhile fails.
const server = http.createServer({ keepAliveTimeout: 0 });
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const { port } = server.address();
const issuer = `http://127.0.0.1:${port}`;

const storage = new Map();
class Memory {
  constructor(model) { this.model = model; }
  key(id) { return `${this.model}:${id}`; }
  async upsert(id, payload) { storage.set(this.key(id), payload); }
  async find(id) { return storage.get(this.key(id)); }
  async findBy(name, value) {
    for (const [key, payload] of storage) {
      if (key.startsWith(`${this.model}:`) && payload[name] === value) return payload;
    }
    return undefined;
  }
  async findByUid(uid) { return this.findBy('uid', uid); }
  async findByUserCode(userCode) { return this.findBy('userCode', userCode); }
  async consume(id) { storage.get(this.key(id)).consumed = Math.floor(Date.now() / 1000); }
  async destroy(id) { storage.delete(this.key(id)); }
  async revokeByGrantId(grantId) {
    for (const [key, payload] of storage) if (payload.grantId === grantId) storage.delete(key);
  }
}

const provider = new Provider(issuer, {
  adapter: Memory,
  scopes: ['openid', 'offline_access'],
  clientAuthMethods: ['none', 'private_key_jwt', 'tls_client_auth', 'self_signed_tls_client_auth'],
  enabledJWA: { clientAuthSigningAlgValues: ['RS256', 'ES256', 'EdDSA'] },
  features: {
    deviceFlow: { enabled: true },
    clientCredentials: { enabled: true },
    revocation: { enabled: true, allowedPolicy: () => true },
    mTLS: {
      enabled: true,
      tlsClientAuth: true,
      selfSignedTlsClientAuth: true,
      getCertificate: (ctx) => {
        const raw = ctx.req.socket.getPeerCertificate?.()?.raw;
        return raw && new X509Certificate(raw).toString();
      },
      certificateAuthorized: (ctx) => ctx.req.socket.authorized === true,
      certificateSubjectMatches: (ctx, property, expected) =>
        property === 'tls_client_auth_subject_dn' && `CN=${ctx.req.socket.getPeerCertificate().subject.CN}` === expected,
    },
  },
  rotateRefreshToken: true,
  findAccount: (ctx, sub) => ({ accountId: sub, claims: () => ({ sub }) }),
});

async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return JSON.parse(Buffer.concat(chunks));
}

function answer(response, status, json) {
  response.writeHead(status, json && { 'content-type': 'application/json' });
  response.end(json && JSON.stringify(json));
}

const oidc = provider.callback();

async function serveTls(folder) {
  const read = (file) => readFileSync(`${folder}/${file}`);
  const options = { cert: read('server.pem'), key: read('server.key'), ca: read('ca.pem'), requestCert: true };
  const secure = https.createServer({ ...options, rejectUnauthorized: false, keepAliveTimeout: 0 }, oidc);
  await new Promise((resolve) => secure.listen(0, '127.0.0.1', resolve));
  return secure.address().port;
}

server.on('request', async (request, response) => {
  try {
    if (request.url === '/test/client') {
      const client = await body(request);
      await new Memory('Client').upsert(client.client_id, client);
      answer(response, 204);
    } else if (request.url === '/test/tls') {
      answer(response, 200, { port: await serveTls((await body(request)).folder) });
    } else {
      oidc(request, response);
    }
  } catch (error) {
    answer(response, 500, { error: String(error.stack) });
  }
});

process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
console.log(JSON.stringify({ port }));
