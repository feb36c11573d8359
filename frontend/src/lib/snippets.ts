/**
 * Snippets: calls that work when pasted, for each kind of endpoint and client.
 *
 * The clients' own conventions hold: OpenAI's take `/v1` in their base URL, Mistral's takes the root.
 */

export const CLIENTS = ['curl', 'openai-python', 'openai-js', 'mistralai'] as const
export type Client = (typeof CLIENTS)[number]

export interface Target {
  /** Of the gateway: `https://gateway.example`. */
  root: string
  key: string
  model: string
  endpoint: string
}

/** What a model without a list of endpoints is asked for: its price's units tell what it does. */
const BY_UNIT: [string, string][] = [
  ['page', 'ocr'],
  ['character', 'audio/speech'],
  ['second', 'audio/transcriptions'],
  ['output_token', 'chat/completions'],
  ['input_token', 'embeddings'],
]

/** The endpoint to show for a model, of those that there are snippets for. */
export function endpointOf(model: { endpoints: string[] | null; units: string[] }): string {
  const known = model.endpoints?.find((one) => one in SNIPPETS)
  if (known !== undefined) return known
  return BY_UNIT.find(([unit]) => model.units.includes(unit))?.[1] ?? 'chat/completions'
}

/** The clients that can call an endpoint. */
export function clientsOf(endpoint: string): Client[] {
  return CLIENTS.filter((client) => SNIPPETS[endpoint]?.[client] !== undefined)
}

export function snippet(client: Client, target: Target): string {
  return SNIPPETS[target.endpoint]![client]!(target)
}

type Writer = (target: Target) => string

const PDF =
  'data:application/pdf;base64,JVBERi0xLjQKMSAwIG9iajw8L1R5cGUvQ2F0YWxvZy9QYWdlcyAyIDAgUj4+ZW5kb2JqCjIgMCBvYmo8PC9UeXBlL1BhZ2VzL0tpZHNbMyAwIFJdL0NvdW50IDE+PmVuZG9iagozIDAgb2JqPDwvVHlwZS9QYWdlL1BhcmVudCAyIDAgUi9NZWRpYUJveFswIDAgMTAwIDEwMF0+PmVuZG9iagp0cmFpbGVyPDwvUm9vdCAxIDAgUj4+'

const curl =
  (body: (model: string) => object, more = ''): Writer =>
  ({ root, key, model, endpoint }) =>
    `curl ${root}/v1/${endpoint} \\
  -H "Authorization: Bearer ${key}" \\
  -H "Content-Type: application/json" \\
  -d '${JSON.stringify(body(model))}'${more}`

const python =
  (call: (model: string) => string): Writer =>
  ({ root, key, model }) =>
    `from openai import OpenAI

client = OpenAI(base_url="${root}/v1", api_key="${key}")
${call(model)}`

const js =
  (call: (model: string) => string, imports = ''): Writer =>
  ({ root, key, model }) =>
    `${imports}import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${root}/v1", apiKey: "${key}" });
${call(model)}`

const mistral =
  (call: (model: string) => string): Writer =>
  ({ root, key, model }) =>
    `from mistralai.client import Mistral

client = Mistral(server_url="${root}", api_key="${key}")
${call(model)}`

const HELLO = [{ role: 'user', content: 'Hello!' }]

const SNIPPETS: Record<string, Partial<Record<Client, Writer>>> = {
  'chat/completions': {
    curl: curl((model) => ({ model, messages: HELLO })),
    'openai-python': python(
      (model) => `answer = client.chat.completions.create(
    model="${model}",
    messages=[{"role": "user", "content": "Hello!"}],
)
print(answer.choices[0].message.content)`,
    ),
    'openai-js': js(
      (model) => `const answer = await client.chat.completions.create({
  model: "${model}",
  messages: [{ role: "user", content: "Hello!" }],
});
console.log(answer.choices[0].message.content);`,
    ),
    mistralai: mistral(
      (model) => `answer = client.chat.complete(
    model="${model}",
    messages=[{"role": "user", "content": "Hello!"}],
)
print(answer.choices[0].message.content)`,
    ),
  },
  embeddings: {
    curl: curl((model) => ({ model, input: 'Hello!' })),
    'openai-python': python(
      (model) => `answer = client.embeddings.create(model="${model}", input="Hello!")
print(len(answer.data[0].embedding))`,
    ),
    'openai-js': js(
      (model) => `const answer = await client.embeddings.create({ model: "${model}", input: "Hello!" });
console.log(answer.data[0].embedding.length);`,
    ),
    mistralai: mistral(
      (model) => `answer = client.embeddings.create(model="${model}", inputs=["Hello!"])
print(len(answer.data[0].embedding))`,
    ),
  },
  ocr: {
    curl: curl((model) => ({
      model,
      document: { type: 'document_url', document_url: PDF },
    })),
    mistralai: mistral(
      (model) => `answer = client.ocr.process(
    model="${model}",
    document={
        "type": "document_url",
        "document_url": "${PDF}",
    },
)
print(answer.pages[0].markdown)`,
    ),
  },
  'audio/speech': {
    curl: curl((model) => ({ model, voice: 'alloy', input: 'Hello!' }), ' \\\n  --output hello.mp3'),
    'openai-python': python(
      (model) => `answer = client.audio.speech.create(model="${model}", voice="alloy", input="Hello!")
answer.write_to_file("hello.mp3")`,
    ),
    'openai-js': js(
      (model) => `const answer = await client.audio.speech.create({
  model: "${model}", voice: "alloy", input: "Hello!",
});
await writeFile("hello.mp3", Buffer.from(await answer.arrayBuffer()));`,
      'import { writeFile } from "node:fs/promises";\n',
    ),
  },
  'audio/transcriptions': {
    curl: ({ root, key, model }) => `curl ${root}/v1/audio/transcriptions \\
  -H "Authorization: Bearer ${key}" \\
  -F model="${model}" \\
  -F file=@hello.wav`,
    'openai-python': python(
      (model) => `with open("hello.wav", "rb") as file:
    answer = client.audio.transcriptions.create(model="${model}", file=file)
print(answer.text)`,
    ),
    'openai-js': js(
      (model) => `const answer = await client.audio.transcriptions.create({
  model: "${model}", file: createReadStream("hello.wav"),
});
console.log(answer.text);`,
      'import { createReadStream } from "node:fs";\n',
    ),
  },
  realtime: {
    'openai-python': ({ root, key, model }) => `import asyncio

from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="${root}/v1", api_key="${key}")


async def main():
    async with client.realtime.connect(model="${model}") as session:
        await session.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        content = [{"type": "input_text", "text": "Hello!"}]
        await session.conversation.item.create(
            item={"type": "message", "role": "user", "content": content}
        )
        await session.response.create()
        async for event in session:
            if event.type == "response.output_text.delta":
                print(event.delta, end="", flush=True)
            elif event.type in ("response.done", "error"):
                break


asyncio.run(main())`,
  },
}
