// A certified OpenID provider on a free loopback port, for the tests in ../it/interop.rs.
//
// It prints one line of JSON, {"port": …}, once it listens, and ends when its standard input does.
//
//   POST /test/grant    {"rotate": bool, "auth": method} → {"refresh_token", "client_id", "client_secret"}: signs a new user in
//   POST /test/revoke   {"refresh_token"} → 204: revokes the grant that it belongs to
//   GET  /test/events   ?client_id=… → {"granted", "refused", "reused"}: what the provider itself saw of a client
//   POST /grace/token   the token endpoint of a server that answers a repeated refresh with the same successor
//
// Each grant has a client of its own, so that tests can share one provider.

import { createHash } from 'node:crypto';
import http from 'node:http';

import { Provider } from 'oidc-provider';

const ACCESS_TTL = 2;

// Standard output carries only the port; the reader stops after it.
console.info = console.error;

// By default, a connection that is idle for 5 s is closed, and a request that is sent meanwhile fails.
const server = http.createServer({ keepAliveTimeout: 0 });
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const { port } = server.address();
const issuer = `http://127.0.0.1:${port}`;

/// What was seen, by client.
const events = new Map();
const seen = (clientId) => {
  if (!events.has(clientId)) events.set(clientId, { granted: 0, refused: 0, reused: 0 });
  return events.get(clientId);
};

/// Clients are made by the tests: an adapter in memory that they can be added to.
const storage = new Map();
const grants = new Map();
class Memory {
  constructor(model) { this.model = model; }
  key(id) { return `${this.model}:${id}`; }
  async upsert(id, payload, expiresIn) {
    storage.set(this.key(id), { payload, until: expiresIn ? Date.now() + expiresIn * 1000 : Infinity });
    if (payload.grantId) {
      if (!grants.has(payload.grantId)) grants.set(payload.grantId, new Set());
      grants.get(payload.grantId).add(this.key(id));
    }
  }
  async find(id) {
    const entry = storage.get(this.key(id));
    return entry && entry.until > Date.now() ? entry.payload : undefined;
  }
  async findByUid() { return undefined; }
  async findByUserCode() { return undefined; }
  async consume(id) { storage.get(this.key(id)).payload.consumed = Math.floor(Date.now() / 1000); }
  async destroy(id) { storage.delete(this.key(id)); }
  async revokeByGrantId(grantId) {
    for (const key of grants.get(grantId) ?? []) storage.delete(key);
    grants.delete(grantId);
  }
}

const provider = new Provider(issuer, {
  adapter: Memory,
  scopes: ['openid', 'offline_access', 'api'],
  clientAuthMethods: ['client_secret_basic', 'client_secret_post', 'none'],
  features: {
    devInteractions: { enabled: false },
    introspection: { enabled: true, allowedPolicy: () => true },
    revocation: { enabled: true, allowedPolicy: () => true },
    clientCredentials: { enabled: true },
  },
  rotateRefreshToken: (ctx) => !ctx.oidc.client.clientId.startsWith('still-'),
  clockTolerance: 0,
  ttl: { AccessToken: ACCESS_TTL, ClientCredentials: ACCESS_TTL, RefreshToken: 3600, Grant: 7200, IdToken: 60 },
  findAccount: (ctx, sub) => ({ accountId: sub, claims: () => ({ sub }) }),
});

provider.on('grant.success', (ctx) => { seen(ctx.oidc.client.clientId).granted += 1; });
provider.on('grant.error', (ctx, error) => {
  const clientId = ctx.oidc?.client?.clientId;
  if (!clientId) return;
  seen(clientId).refused += 1;
  if (/already used/.test(error.error_detail ?? '')) seen(clientId).reused += 1;
});

let serial = 0;
async function grant({ rotate = true, auth = 'client_secret_basic' }) {
  serial += 1;
  const clientId = `${rotate ? 'app' : 'still'}-${serial}`;
  const clientSecret = `s3cret&${serial} %`;
  await new Memory('Client').upsert(clientId, {
    client_id: clientId,
    client_secret: auth === 'none' ? undefined : clientSecret,
    token_endpoint_auth_method: auth,
    grant_types: auth === 'none' ? ['refresh_token'] : ['refresh_token', 'client_credentials'],
    redirect_uris: [],
    response_types: [],
    scope: 'openid offline_access api',
  });
  const accountId = `user-${serial}`;
  const grant = new provider.Grant({ accountId, clientId });
  grant.addOIDCScope('openid offline_access');
  const grantId = await grant.save();
  const client = await provider.Client.find(clientId);
  const token = new provider.RefreshToken({
    accountId, client, grantId, gty: 'refresh_token', scope: 'openid offline_access', rotations: 0,
    iiat: Math.floor(Date.now() / 1000), authTime: Math.floor(Date.now() / 1000),
  });
  return { refresh_token: await token.save(), client_id: clientId, client_secret: clientSecret };
}

async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks);
}

function answer(response, status, json) {
  response.writeHead(status, json && { 'content-type': 'application/json' });
  response.end(json && JSON.stringify(json));
}

/// The same body within the window gets the same answer: 10 s, as large providers do.
const repeated = new Map();
async function graceful(request, response) {
  const sent = await body(request);
  const key = createHash('sha256').update(sent).digest('hex');
  if (!repeated.has(key)) {
    repeated.set(key, fetch(`${issuer}/token`, {
      method: 'POST',
      headers: { authorization: request.headers.authorization, 'content-type': request.headers['content-type'] },
      body: sent,
    }).then(async (answer) => [answer.status, await answer.json()]));
    setTimeout(() => repeated.delete(key), 10_000).unref();
  }
  answer(response, ...await repeated.get(key));
}

const oidc = provider.callback();
server.on('request', async (request, response) => {
  try {
    const url = new URL(request.url, issuer);
    if (url.pathname === '/test/grant') {
      answer(response, 200, await grant(JSON.parse(await body(request))));
    } else if (url.pathname === '/test/revoke') {
      const token = await provider.RefreshToken.find(JSON.parse(await body(request)).refresh_token);
      await provider.Grant.adapter.destroy(token.grantId);
      await provider.RefreshToken.revokeByGrantId(token.grantId);
      answer(response, 204);
    } else if (url.pathname === '/test/events') {
      answer(response, 200, seen(url.searchParams.get('client_id')));
    } else if (url.pathname === '/grace/token') {
      await graceful(request, response);
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
