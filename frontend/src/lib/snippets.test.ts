import { expect, test } from 'vitest'

import { clientsOf, endpointOf, snippet } from './snippets'

test.each([
  [{ endpoints: ['audio/transcriptions', 'realtime'], units: [] }, 'audio/transcriptions'],
  [{ endpoints: ['realtime'], units: ['input_token', 'output_token'] }, 'realtime'],
  [{ endpoints: null, units: ['page'] }, 'ocr'],
  [{ endpoints: null, units: ['input_token'] }, 'embeddings'],
  [{ endpoints: null, units: ['input_token', 'output_token'] }, 'chat/completions'],
  [{ endpoints: null, units: ['character'] }, 'audio/speech'],
  [{ endpoints: null, units: [] }, 'chat/completions'],
])('%o is shown as %s', (model, endpoint) => expect(endpointOf(model)).toBe(endpoint))

test('every snippet holds what it needs', () => {
  for (const endpoint of ['chat/completions', 'embeddings', 'ocr', 'audio/speech', 'audio/transcriptions', 'realtime']) {
    const clients = clientsOf(endpoint)
    expect(clients.length).toBeGreaterThan(0)
    for (const client of clients) {
      const code = snippet(client, { root: 'http://gate', key: 'sg_x', model: 'm-1', endpoint })
      for (const part of ['http://gate', 'sg_x', 'm-1']) expect(code, `${endpoint} ${client}`).toContain(part)
    }
  }
})
