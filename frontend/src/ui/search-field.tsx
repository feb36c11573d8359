/** A field to search with: it asks once typing pauses, and shows what was asked for elsewhere. */
import { useEffect, useRef, useState } from 'react'

import { TextField } from './field'

const PAUSE_MS = 250
/** The server takes no more. */
const LENGTH_MAX = 200

export function SearchField({
  value,
  onAsk,
  ...field
}: {
  label: string
  placeholder?: string
  className?: string
  value: string
  onAsk: (value: string) => void
}) {
  const [typed, setTyped] = useState(value)
  const asked = useRef(value)
  const ask = useRef(onAsk)
  ask.current = onAsk
  useEffect(() => {
    if (value === asked.current) return
    asked.current = value
    setTyped(value)
  }, [value])
  useEffect(() => {
    if (typed === asked.current) return
    const pause = setTimeout(() => {
      asked.current = typed
      ask.current(typed)
    }, PAUSE_MS)
    return () => clearTimeout(pause)
  }, [typed])
  return (
    <TextField
      {...field}
      type="search"
      maxLength={LENGTH_MAX}
      value={typed}
      onChange={(event) => setTyped(event.target.value)}
    />
  )
}
