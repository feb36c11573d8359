// Takes out of package-lock.json what names a place: a lock pins packages by their digests alone.
import { readFileSync, writeFileSync } from 'node:fs'

const file = new URL('../package-lock.json', import.meta.url)
const lock = JSON.parse(readFileSync(file, 'utf8'))
for (const entry of Object.values(lock.packages)) {
  delete entry.resolved
  delete entry.funding
  if (typeof entry.deprecated === 'string') delete entry.deprecated
}
const text = JSON.stringify(lock, null, 2) + '\n'
if (text.includes('://')) throw new Error('package-lock.json still names an address')
writeFileSync(file, text)
