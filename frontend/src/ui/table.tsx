/** Lists: a table where there is room, a card for each row on phones. */
import type { ReactNode } from 'react'

export interface Column<Row> {
  name: string
  head: ReactNode
  cell: (row: Row) => ReactNode
  /** Numbers line up at their end. */
  end?: boolean
  /** What a card is headed with: its label is left out there. */
  title?: boolean
  /** Left out where a cell has nothing to say, on cards. */
  optional?: (row: Row) => boolean
  /** Needs all the width of a card. */
  wide?: boolean
  /** Holds buttons: in line with the text beside them, and at the end of a card. */
  actions?: boolean
  /** Holds a box to choose the row by: before a table's row, in the corner of a card. */
  mark?: boolean
}

interface Props<Row> {
  caption: string
  columns: Column<Row>[]
  rows: readonly Row[]
  id: (row: Row) => string
  /** What is shown below a row, all its width. */
  below?: (row: Row) => ReactNode
}

export function DataTable<Row>({ caption, columns, rows, id, below }: Props<Row>) {
  return (
    <table role="table" className="w-full border-separate border-spacing-0 max-md:block">
      <caption className="sr-only">{caption}</caption>
      <thead role="rowgroup" className="max-md:sr-only">
        <tr role="row">
          {columns.map((column) => (
            <th
              key={column.name}
              role="columnheader"
              scope="col"
              className={`border-b border-line px-3 py-2 text-xs font-medium whitespace-nowrap text-soft first:pl-4 last:pr-4 ${column.end ? 'text-right' : 'text-left'}`}
            >
              {column.head}
            </th>
          ))}
        </tr>
      </thead>
      <tbody role="rowgroup" className="max-md:flex max-md:flex-col">
        {rows.map((row) => (
          <Lines key={id(row)} {...{ row, columns, below }} />
        ))}
      </tbody>
    </table>
  )
}

/** How a cell stands in its row, or on its card. */
function looks<Row>(column: Column<Row>, row: Row): string {
  const { end, title, wide, actions, mark, optional } = column
  return [
    end && 'md:text-right',
    // As high as a line of text and its padding: a button's label is on the line.
    actions ? 'max-md:order-1 max-md:col-span-2 max-md:pt-1 md:py-px' : 'md:py-2',
    title && 'max-md:-order-1 max-md:col-span-2 max-md:text-base max-md:font-medium',
    mark && 'max-md:absolute max-md:top-3.5 max-md:right-4',
    wide && 'max-md:col-span-2',
    optional && !optional(row) && 'max-md:hidden',
  ]
    .filter(Boolean)
    .join(' ')
}

function Lines<Row>({
  row,
  columns,
  below,
}: {
  row: Row
  columns: Column<Row>[]
  below: ((row: Row) => ReactNode) | undefined
}) {
  const more = below?.(row)
  const edge = more ? '' : 'md:border-b md:group-last:border-b-0'
  return (
    <>
      <tr
        role="row"
        className={`group max-md:relative max-md:grid max-md:grid-cols-2 max-md:gap-x-4 max-md:gap-y-1.5 max-md:px-4 max-md:py-3 ${more ? '' : 'max-md:border-b max-md:border-line max-md:last:border-b-0'}`}
      >
        {columns.map((column) => (
          <td
            key={column.name}
            role="cell"
            className={`border-line align-top max-md:flex max-md:min-w-0 max-md:flex-col max-md:items-start md:px-3 md:first:pl-4 md:last:pr-4 md:group-hover:bg-sunk/60 ${edge} ${looks(column, row)}`}
          >
            {!column.title && !column.mark && column.head && (
              <span aria-hidden="true" className="text-xs text-soft md:hidden">
                {column.head}
              </span>
            )}
            <span className="max-w-full min-w-0">{column.cell(row)}</span>
          </td>
        ))}
      </tr>
      {more && (
        <tr role="row" className="group max-md:block max-md:border-b max-md:border-line max-md:px-4 max-md:pb-3 max-md:last:border-b-0">
          <td role="cell" colSpan={columns.length} className="border-line max-md:block md:border-b md:px-4 md:pb-3 md:group-last:border-b-0">
            {more}
          </td>
        </tr>
      )}
    </>
  )
}
