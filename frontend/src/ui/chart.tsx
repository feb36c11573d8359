/**
 * Bars of USD. For the eye and the mouse: whoever uses neither has the table that stands beside
 * every chart, with the same rows and the same links.
 */
import {
  Bar,
  BarChart,
  CartesianGrid,
  ResponsiveContainer,
  Tooltip,
  type TooltipContentProps,
  XAxis,
  YAxis,
} from 'recharts'

import { useWords } from '@/i18n'
import { type Usd, formatUsd } from '@/lib/money'

export interface ChartBar {
  name: string
  usd: Usd
  detail: string
  open: () => void
}

const BAR_PX = 34
const NAMES_PX = 132
const NAME_LENGTH_MAX = 17

/** The whole name is in the tip and in the table. */
const shorten = (name: string) =>
  name.length > NAME_LENGTH_MAX ? `${name.slice(0, NAME_LENGTH_MAX - 1)}…` : name

const TEXT = { fontSize: 12, fill: 'var(--soft)' }

interface Props {
  label: string
  bars: ChartBar[]
  /** Time goes to the right; what is compared goes down. */
  upright: boolean
}

export default function Chart({ label, bars, upright }: Props) {
  const { locale } = useWords()
  const data = bars.map((bar) => ({ ...bar, size: Number(bar.usd) }))
  const money = (value: number) => formatUsd(String(value), locale)
  const names = { dataKey: 'name', type: 'category', tick: TEXT, tickLine: false, axisLine: { stroke: 'var(--line)' } } as const
  const sizes = { type: 'number', tick: TEXT, tickLine: false, axisLine: false, tickFormatter: money } as const
  return (
    <figure aria-label={label} className="min-w-0">
      <div aria-hidden="true" style={{ height: upright ? 220 : Math.max(80, data.length * BAR_PX + 36) }}>
        <ResponsiveContainer width="100%" height="100%">
          <BarChart
            data={data}
            layout={upright ? 'horizontal' : 'vertical'}
            margin={{ top: 4, right: 24, bottom: 0, left: 0 }}
            accessibilityLayer={false}
          >
            <CartesianGrid stroke="var(--line)" vertical={!upright} horizontal={upright} />
            {upright ? <XAxis {...names} minTickGap={16} /> : <XAxis {...sizes} />}
            {upright ? <YAxis {...sizes} width="auto" /> : <YAxis {...names} width={NAMES_PX} interval={0} tickFormatter={shorten} />}
            <Tooltip cursor={{ fill: 'var(--sunk)' }} content={Tip} isAnimationActive={false} />
            <Bar
              dataKey="size"
              fill="var(--ok)"
              radius={upright ? [4, 4, 0, 0] : [0, 4, 4, 0]}
              maxBarSize={upright ? 42 : 20}
              isAnimationActive={false}
              cursor="pointer"
              onClick={(_, index) => data[index]?.open()}
            />
          </BarChart>
        </ResponsiveContainer>
      </div>
    </figure>
  )
}

function Tip({ active, payload }: TooltipContentProps) {
  const { locale } = useWords()
  const bar = payload?.[0]?.payload as ChartBar | undefined
  if (!active || !bar) return null
  return (
    <div className="rounded-lg border border-line bg-card px-3 py-2 text-xs shadow-card">
      <p className="font-semibold">{bar.name}</p>
      <p>{formatUsd(bar.usd, locale)}</p>
      <p className="text-soft">{bar.detail}</p>
    </div>
  )
}
